"""The processes of one run: torchrun starts them, gloo (CPU) or NCCL (GPU) connects them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import cv2
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from util.errors import UserError

# Long enough for one process to scan the masks of COCO while the others wait for the index.
TIMEOUT = timedelta(minutes=30)

DEFAULTS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
REMEDY = "unset it, or start by torchrun, which sets all of them"

Value = TypeVar("Value")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all of the run; one process alone needs no connection, and every method still works."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and talks."""
        return self.rank == 0

    @property
    def no_bar(self) -> bool | None:
        """What tqdm calls `disable`: a bar in the first process alone, and where someone looks."""
        return None if self.is_main else True

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over processes, in place; exact for integers."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process."""
        return (self.all_reduce(torch.tensor(flags, dtype=torch.int64)) > 0).tolist()

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes in rank order, in every process."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Value) -> Value:
        """The first process's value, in every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers, such as the running statistics of batch norms."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Wait for every process."""
        self.any(False)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process runs the block alone, then the others do: for work that leaves a cache behind."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def parallel(self, model: nn.Module, partial: bool = False) -> nn.Module:
        """The model whose backward pass averages gradients over processes; batch norms on GPUs see all images.

        `partial`: some of its parameters get no gradient.
        """
        if self.size == 1:
            return model
        if self.device.type != "cpu":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # Gradients of pointwise convolutions come channels last, which for 1 x 1 weights is no other order.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, find_unused_parameters=partial, gradient_as_bucket_view=True)


@contextmanager
def connect(device: str = "auto") -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, or be the only one; `device` is the config key.

    OpenCV then runs as many threads as PyTorch, which follows OMP_NUM_THREADS; by itself it takes all processors.
    Raises UserError when the device does not exist or the processes do not find each other.
    """
    rank, size, local = place_of_process()
    process_group = ProcessGroup(pick_device(device, local, size), rank, size)
    if cv2.getNumThreads() != torch.get_num_threads():
        cv2.setNumThreads(torch.get_num_threads())
    if process_group.device.index is not None:
        torch.accelerator.set_device_index(process_group.device.index)
    if size == 1:
        yield process_group
        return
    try:
        own = dist.Backend.default_device_backend_map.get(process_group.device.type, "gloo")
        backends = dict.fromkeys(["cpu", process_group.device.type], own) | {"cpu": "gloo"}
        dist.init_process_group(",".join(map(":".join, backends.items())), timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise UserError(f"process {rank} cannot meet the others at {place}, try another port: {reason}") from error
    try:
        yield process_group
    except SystemExit:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after an error: with a dead partner it could wait for ever


def place_of_process() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as torchrun's variables say; 0, 1 and 0 without them.

    UserError that names a variable which does not fit, such as one that a scheduler has left.
    """
    numbers = {}
    for key, default in DEFAULTS.items():
        text = os.environ.get(key, default)
        if not text.isdecimal():
            raise UserError(f"{key}: {text!r} in the environment is no number; {REMEDY}")
        numbers[key] = int(text)
    rank, size, local = numbers.values()
    if rank >= size:
        raise UserError(f"RANK: {rank} in the environment, but by WORLD_SIZE there are {size} processes; {REMEDY}")
    if size > 1 and (missing := [key for key in ("MASTER_ADDR", "MASTER_PORT") if key not in os.environ]):
        raise UserError(f"WORLD_SIZE: {size} in the environment without {missing[0]}; {REMEDY}")
    return rank, size, local


def pick_device(name: str, local_rank: int = 0, size: int = 1) -> torch.device:
    """The device of a process: `auto` is its own accelerator (a GPU) where there is one, else the CPU.

    Raises UserError for a device that this machine does not have.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        name = found.type if found else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: {name!r} should be auto, cpu, cuda, cuda:NUMBER, mps or xpu") from error
    if device.type == "cpu":
        return torch.device("cpu")  # without a number, which would be an accelerator's
    if found is None or found.type != device.type:
        has = f"an accelerator of type {found.type}" if found else "none"
        raise UserError(f"device: {name!r} is no accelerator that PyTorch finds here, it finds {has}; use auto or cpu")
    count, index = torch.accelerator.device_count(), local_rank if device.index is None or size > 1 else device.index
    if index >= count:
        raise UserError(
            f"device: {name!r} needs GPU {index}, but {count} are visible; start fewer processes or use cpu"
        )
    return torch.device(device.type, index)

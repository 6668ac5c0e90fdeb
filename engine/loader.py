"""Which items a process loads in which step, and the workers that load them."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from util.distributed import ProcessGroup
from util.errors import UserError

Batch = dict[str, Any]

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches that every worker of a DataLoader prepares ahead


class StepPlan(NamedTuple):
    """How the items of an epoch become steps: a step takes `accumulate` batches of `batch` items in every process."""

    items: int
    batch: int
    accumulate: int
    process_group: ProcessGroup

    @property
    def items_per_step(self) -> int:
        """Items of one step over all processes."""
        return self.batch * self.accumulate * self.process_group.size

    @property
    def steps(self) -> int:
        """Steps of an epoch; items left over wait for the next epoch's order."""
        return self.items // self.items_per_step

    def check(self, key: str) -> "StepPlan":
        """UserError that names the config key of the batch when the items do not fill one step."""
        if not self.steps:
            raise UserError(
                f"{key}: a step takes {self.items_per_step} items, but there are only {self.items}; lower it"
            )
        return self

    def batches(self, seed: int, first_step: int = 0) -> list[list[int]]:
        """Item numbers of this process's batches from a step on, in an order that depends on the seed alone.

        Batch i over all processes is order[i*B*W : (i+1)*B*W]; process r takes the r-th B of them.
        """
        order = torch.randperm(self.items, generator=torch.Generator().manual_seed(seed)).tolist()
        whole, offset = self.batch * self.process_group.size, self.batch * self.process_group.rank
        numbers = range(first_step * self.accumulate, self.steps * self.accumulate)
        return [order[number * whole + offset :][: self.batch] for number in numbers]


def shard_batches(items: int, batch: int, process_group: ProcessGroup) -> list[list[int]]:
    """This process's share of the batches that one process would make of items 0, 1, ... in order.

    Whole batches, because how a network rounds depends on the size of the batch.
    """
    batches = [list(range(start, min(start + batch, items))) for start in range(0, items, batch)]
    return batches[process_group.rank :: process_group.size]


def load_steps(
    dataset: Dataset[Batch],
    batches: list[list[int]],
    accumulate: int,
    workers: int,
    collate: Callable[[list[Batch]], Batch] | None = None,
) -> Iterator[list[Batch]]:
    """The batches of one step after the other, loaded ahead by worker processes.

    UserError when the memory through which they hand them over is too small.
    """
    workers = min(workers, len(batches))
    if workers:
        check_shared_memory(len(batches[0]) * item_bytes(dataset, batches[0][0]), workers)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(start_worker, main=os.getpid()),
        generator=torch.Generator(),  # its own: starting a loader must not shift the numbers that dropout draws
    )
    with one_opencv_thread():
        iterator = iter(loader)  # starts the workers
    return zip(*[iterator] * accumulate, strict=True)  # type: ignore[return-value]


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Within the block OpenCV runs one thread, and so do processes that are forked in it.

    A forked process has none of the threads that OpenCV has started before, and would wait for them for ever.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def item_bytes(dataset: Dataset[Batch], item: int) -> int:
    """Memory of an item's tensors."""
    return tensor_bytes(dataset[item])


def tensor_bytes(values: Any) -> int:
    """Memory of all tensors in nested dictionaries."""
    if isinstance(values, Mapping):
        return sum(map(tensor_bytes, values.values()))
    return values.nbytes if isinstance(values, torch.Tensor) else 0


def check_shared_memory(batch: int, workers: int) -> None:
    """UserError when /dev/shm, which in containers is often small, has no room for the batches (bytes) on their way.

    A worker that runs out of it cannot say so: its batch is lost.
    """
    if not SHARED_MEMORY.is_dir():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free, each = shutil.disk_usage(SHARED_MEMORY).free // processes, max(batch, 1)
    need = (PREFETCH * workers + 1) * each
    if need > free:
        fitting = max((free // each - 1) // PREFETCH, 0)
        raise UserError(
            f"{SHARED_MEMORY}: {free / 1e6:.0f} MB are free for each process, but {workers} loader workers need "
            f"{need / 1e6:.0f} MB; use `--opts loader_workers {fitting}`, or start the container with more --shm-size"
        )


def start_worker(worker: int, main: int) -> None:
    """Run one thread, leave the process group, and do not outlive the main process.

    A signal to the whole group is for the main process, which needs its workers to finish the step. A worker whose main
    process was killed before it began has another parent, and would wait for it for ever. So would the main process
    for a batch that could not be sent, which the sending thread drops: such a worker ends.
    """
    if cv2.getNumThreads() != 1:  # a spawned process; a forked one must not touch threads that it does not have
        cv2.setNumThreads(1)
    Queue._on_queue_feeder_error = staticmethod(lambda error, item: os._exit(1))  # type: ignore[attr-defined]
    os.setsid()
    if os.getppid() == 1 != main:
        os._exit(1)

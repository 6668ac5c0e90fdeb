"""Which items a process loads in which step, and the workers that load them."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from util.distributed import World
from util.errors import UserError

Batch = dict[str, Any]


class StepPlan(NamedTuple):
    """How the items of an epoch become steps: a step takes `accumulate` batches of `batch` items in every process."""

    items: int
    batch: int
    accumulate: int
    world: World

    @property
    def items_per_step(self) -> int:
        """Items of one step over all processes."""
        return self.batch * self.accumulate * self.world.size

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
        whole, offset = self.batch * self.world.size, self.batch * self.world.rank
        numbers = range(first_step * self.accumulate, self.steps * self.accumulate)
        return [order[number * whole + offset :][: self.batch] for number in numbers]


def shard_batches(items: int, batch: int, world: World) -> list[list[int]]:
    """This process's share of the batches that one process would make of items 0, 1, ... in order.

    Whole batches, because how a network rounds depends on the size of the batch.
    """
    batches = [list(range(start, min(start + batch, items))) for start in range(0, items, batch)]
    return batches[world.rank :: world.size]


def load_steps(
    dataset: Dataset[Batch],
    batches: list[list[int]],
    accumulate: int,
    workers: int,
    collate: Callable[[list[Batch]], Batch] | None = None,
) -> Iterator[list[Batch]]:
    """The batches of one step after the other, loaded ahead by worker processes."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(start_worker, main=os.getpid()),
        generator=torch.Generator(),  # its own: starting a loader must not shift the numbers that dropout draws
    )
    return zip(*[iter(loader)] * accumulate, strict=True)  # type: ignore[return-value]


def start_worker(worker: int, main: int) -> None:
    """Run one thread, as PyTorch does in a worker, leave the process group, and do not outlive the main process.

    A signal to the whole group is for the main process, which needs its workers to finish the step. A worker whose main
    process was killed before it began has another parent, and would wait for it for ever.
    """
    cv2.setNumThreads(1)
    os.setsid()
    if os.getppid() == 1 != main:
        os._exit(1)

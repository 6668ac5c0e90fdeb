"""How much memory a training step takes, found without taking it: tensors are counted, not computed."""

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tools.stages import as_operator
from tools.training import TrainingStep
from util.config import Config


class LiveBytes(TorchDispatchMode):
    """Within the block, the bytes of all tensors that are alive: now, and at most since `peak` was set to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(x for x in tree_leaves(out) if isinstance(x, Tensor))
        return out

    def count(self, tensors: Iterator[Tensor]) -> None:
        """Take tensors in that were made elsewhere; those that share their memory count once."""
        for storage in (x.untyped_storage() for x in tensors):
            if (key := id(storage)) not in self.alive:
                self.alive.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


class StepMemory(NamedTuple):
    """Bytes of a training step."""

    kept: int  # between steps: weights, optimisers' states, the batch
    saved: int  # by the forward pass for the backward pass
    peak: int  # of everything at once


def step_memory(cfg: Config) -> StepMemory:
    """A training step's tensors, without the libraries' work space and what the allocator cannot use again."""
    step, mode, live = TrainingStep(as_operator(cfg)), FakeTensorMode(), LiveBytes()
    with FakeCopyMode(mode):
        step = copy.deepcopy(step)
    live.count(iter([*step.model.parameters(), *step.model.buffers(), *step.images, step.truth]))
    with mode, live:
        step.seconds()  # makes the optimisers' states
        kept, live.peak = live.now, 0
        loss = step.loss()
        saved = live.now - kept
        loss.backward()
    return StepMemory(kept, saved, live.peak)

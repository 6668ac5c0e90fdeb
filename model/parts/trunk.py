"""The trunk: blocks in which the query meets the support, one after the other (paper, section 4).

The support never sees the query: each block turns the support into a memory for the query and into the next block's
support (`encode_support`), and enhances the query with that memory. So the support's half can be computed once for many
queries. Maps are channels last, `(B, f, f, C)`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

Memory: TypeAlias = tuple[Tensor, ...]  # what a block keeps of a support for the queries; its own NamedTuple, B first


class Block(Protocol):
    """One step of query and support, a module; it gets back the memory that it made itself."""

    fuses: bool  # whether the query needs a memory of the support

    def __call__(self, q: Tensor, memory: Any) -> Tensor:
        """The query's way through the block, `(B, f, f, C)` to the same."""

    def encode_support(self, s: Tensor) -> tuple[Tensor, Memory | None]:
        """The support's way through the block: the next block's support and the memory for the query."""

    def remember(self, s: Tensor) -> Memory | None:
        """The memory alone, where nothing needs the block's support output."""


class Trunk(nn.Module):
    """Blocks of width C, and a layer norm on the query that leaves the last one; without blocks nothing at all.

    `checkpoint_blocks`: recompute each block in the backward pass to save memory.
    """

    def __init__(self, blocks: Sequence[Block], width: int, checkpoint_blocks: bool = False) -> None:
        super().__init__()
        self.width, self.checkpoint_blocks = width, checkpoint_blocks
        self.blocks = nn.ModuleList(cast(Sequence[nn.Module], blocks))
        self.norm: nn.Module = nn.LayerNorm(width) if blocks else nn.Identity()
        self.apply(initialise_linear)

    def encode_support(self, s: Tensor) -> list[Memory | None]:
        """Every block's memory of the support map `s (B, f, f, C)`.

        Stops at the last block that fuses, whose support output nothing needs: the blocks' support goes no further.
        """
        blocks = cast(Sequence[Block], self.blocks)
        last = max((i for i, block in enumerate(blocks) if block.fuses), default=-1)
        memories: list[Memory | None] = [None] * len(blocks)
        for i in range(last):
            s, memories[i] = self._run(blocks[i].encode_support, s)
        if last >= 0:
            memories[last] = self._run(blocks[last].remember, s)
        return memories

    def forward(self, q: Tensor, memories: Sequence[Memory | None]) -> Tensor:
        """The query map `q (B, f, f, C)` enhanced with the support's memories; same shape."""
        for block, memory in zip(self.blocks, memories, strict=True):
            q = self._run(block, q, memory)
        return self.norm(q)

    def _run(self, step: Callable[..., Any], *inputs: Tensor | Memory | None) -> Any:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(step, *inputs, use_reentrant=False, context_fn=_same_functions)
        return step(*inputs)


def _same_functions() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a block's two passes: what replaces functions of PyTorch in the first does so in the second.

    The backward pass runs outside of it, and other functions would save other tensors.
    """
    return nullcontext(), _entered(_get_current_function_mode_stack())


@contextmanager
def _entered(contexts: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def initialise_linear(module: nn.Module) -> None:
    """Truncated normal weights, no bias; other modules are left alone."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

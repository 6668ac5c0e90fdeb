"""Containers of tensors changed alike: the features, embedded features and support states of every method.

A tree is a tensor, None, or a mapping, list, tuple or NamedTuple of trees.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any


def tree_map(change: Callable[..., Tensor], *trees: Tree) -> Tree:
    """One tree whose tensors are `change` of the tensors that stand at the same place of all trees."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return change(*trees)
    if isinstance(first, Mapping):
        return {key: tree_map(change, *(tree[key] for tree in trees)) for key in first}
    parts = [tree_map(change, *children) for children in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def tensors(tree: Tree) -> Iterator[Tensor]:
    """All tensors of a tree."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for child in tree.values() if isinstance(tree, Mapping) else tree:
            yield from tensors(child)


def concatenate(trees: Sequence[Tree]) -> Tree:
    """Trees of single samples as that of a batch: tensors joined along their first dimension."""
    return trees[0] if len(trees) == 1 else tree_map(lambda *parts: torch.cat(parts), *trees)


def stack_maps(*maps: Tensor) -> Tensor:
    """Maps `(B, C_i, h, w)`, or `(B, C_i, 1, 1)` that hold everywhere, as one `(B, sum C_i, h, w)`, channels last."""
    height, width = (max(each.shape[side] for each in maps) for side in (2, 3))
    whole = [each.expand(-1, -1, height, width).contiguous(memory_format=torch.channels_last) for each in maps]
    return torch.cat(whole, dim=1)


def expand(tree: Tree, batch: int) -> Tree:
    """A tree of one sample, B = 1, shared among `batch` samples without copying it."""
    return tree_map(lambda x: x.expand(batch, *x.shape[1:]), tree)


def nbytes(tree: Tree) -> int:
    """Memory held in bytes; a tensor that stands in several places counts once."""
    return sum({x.data_ptr(): x.nbytes for x in tensors(tree)}.values())

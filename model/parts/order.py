"""Token orders: a scan direction is an index array that the scan follows, so no sequence is ever copied.

`order[k, t]` is the image position (row-major) of token t of direction k. Directions 2 and 3 are 0 and 1 reversed.
"""

import torch
from torch import Tensor


def plain_orders(size: int, device: torch.device | None = None) -> Tensor:
    """Row-major, column-major and their reverses over a square image: `(4, size * size)` (paper, section 4.2)."""
    return _with_reversed(_grid(size, 1, device), row_major=(0, 1, 2, 3), column_major=(2, 3, 0, 1))


def patch_orders(size: int, patches: int, device: torch.device | None = None) -> Tensor:
    """The same four with the image cut into `patches` x `patches` patches, visited one after the other.

    In direction 0 patches and the pixels inside each are row-major, in direction 1 both are column-major.
    Returns `(4, size * size)`; `size` must be a multiple of `patches` (paper, section 4.3).
    """
    if size % patches:
        raise ValueError(f"patch_orders: an image of {size} x {size} cannot be cut into {patches} x {patches} patches")
    return _with_reversed(_grid(size, patches, device), row_major=(0, 2, 1, 3), column_major=(2, 0, 3, 1))


def _grid(size: int, patches: int, device: torch.device | None) -> Tensor:
    side = size // patches
    positions = torch.arange(size * size, device=device)
    return positions.view(patches, side, patches, side)  # (patch row, row, patch column, column)


def _with_reversed(grid: Tensor, row_major: tuple[int, ...], column_major: tuple[int, ...]) -> Tensor:
    forward = torch.stack([grid.permute(axes).flatten() for axes in (row_major, column_major)])  # (2, L)
    return torch.cat([forward, forward.flip(-1)])  # (4, L)

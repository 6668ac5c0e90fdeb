"""The one resize of the network: bilinear, nearly everywhere with aligned corners."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def resize(x: Tensor, size: int | Sequence[int], aligned: bool = True) -> Tensor:
    """Resize `(B, C, h, w)` to `(B, C, *size)`; a map that has the size already is returned as it is."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=aligned)


def resize_last(x: Tensor, size: int) -> Tensor:
    """Resize a square map with its channels last, `(B, h, h, C)` to `(B, size, size, C)`."""
    return resize(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)

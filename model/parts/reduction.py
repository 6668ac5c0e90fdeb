"""The learnt reduction of a backbone's finer maps, which most methods begin with (PFENet, TPAMI 2020)."""

import torch
from torch import Tensor, nn

from model.resize import resize


def reduction(channels: int, width: int, dropout: float = 0.5) -> nn.Sequential:
    """`(B, channels, h, w)` to `(B, width, h, w)`: 1x1 convolution, ReLU, dropout of whole channels."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.ReLU(), nn.Dropout2d(dropout))


def concat_maps(first: Tensor, *others: Tensor) -> Tensor:
    """Maps joined along their channels in the given order, all at the first one's size."""
    return torch.cat([first, *(resize(x, first.shape[-2:]) for x in others)], dim=1)

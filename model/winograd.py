"""3x3 convolutions of many channels by Winograd's F(2x2, 3x3): 16 multiplications instead of 36 for 4 outputs.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1. Images are cut
into overlapping tiles of 4 x 4; a tile and the weights are changed linearly, multiplied, and the products changed back.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.products import CONVOLVES, is_float32_on_cpu

SMALLEST = 512  # channels above which products cost more than the changes around them
WEIGHTS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`: `x (B, C, h, w)`, `weight (O, C, 3, 3)`, to `(B, O, h, w)`.

    Winograd's way where it is faster: float32 on a CPU without gradients, where MKL is fast (model/products.py).
    """
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if CONVOLVES or learns or not is_float32_on_cpu(x) or weight.shape[1] <= SMALLEST:
        return F.conv2d(x, weight, bias, padding=1)
    return winograd(x, weight, bias)


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, always by Winograd's way; the result lies channels last."""
    height, width = x.shape[-2:]
    down, right = height + height % 2, width + width % 2
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + right - width, 1, 1 + down - height))
    tiles = _change(padded, x.new_empty(16, x.shape[0] * (down // 2) * (right // 2), x.shape[1]))
    matrix = x.new_tensor(WEIGHTS)
    kernels = torch.kron(matrix, matrix) @ weight.permute(2, 3, 0, 1).reshape(9, -1)
    products = torch.bmm(tiles, kernels.view(16, *weight.shape[:2]).transpose(1, 2))
    out = _change_back(products, x.new_empty(x.shape[0], down, right, len(weight)))[:, :height, :width]
    return (out if bias is None else out.add_(bias)).permute(0, 3, 1, 2)


def _change(x: Tensor, out: Tensor) -> Tensor:
    """Tiles of `x (B, 2t + 2, 2u + 2, C)` into `out (16, B t u, C)`."""
    t, u = x.shape[1] // 2 - 1, x.shape[2] // 2 - 1
    cells = out.view(4, 4, x.shape[0], t, u, -1)
    a, b, c, d = (x[:, i : i + 2 * t : 2] for i in range(4))
    for row, cell in zip((a - c, b + c, c - b, b - d), cells, strict=True):
        a, b, c, d = (row[:, :, i : i + 2 * u : 2] for i in range(4))
        torch.sub(a, c, out=cell[0])
        torch.add(b, c, out=cell[1])
        torch.sub(c, b, out=cell[2])
        torch.sub(b, d, out=cell[3])
    return out


def _change_back(products: Tensor, out: Tensor) -> Tensor:
    """Products `(16, B t u, O)` of all tiles into `out (B, 2t, 2u, O)`."""
    batch, height, width, _ = out.shape
    a, b, c, d = products.view(4, 4, batch, height // 2, width // 2, -1)
    for i, row in enumerate((a + b + c, b - c - d)):
        torch.add(row[0] + row[1], row[2], out=out[:, i::2, ::2])
        torch.sub(row[1] - row[2], row[3], out=out[:, i::2, 1::2])
    return out

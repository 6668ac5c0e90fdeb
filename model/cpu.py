"""What makes networks fast on a CPU, outside of their definitions and with the same results up to rounding.

`fast_products` is entered around a network and replaces products and convolutions as they are called; the frozen base
learner is built as `FastBaseLearner`.
"""

import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from model.parts.base_learner import BaseLearner
from model.resize import resize

SMALLEST_PRODUCT = 2**20  # multiplications of a product that is worth the convolution's longer way
SMALLEST_WINOGRAD = 512  # channels above which products cost more than the changes around them
WINOGRAD_WEIGHTS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a network on this device computes its products the fastest way."""
    return FastProducts() if device.type == "cpu" else nullcontext()


class FastProducts(TorchFunctionMode):
    """Replaces float32 products by convolutions where MKL is slow, large 3x3 convolutions by Winograd's way elsewhere.

    PyTorch multiplies float32 matrices by MKL and convolves by oneDNN. On Intel's processors both reach the same speed;
    on AMD's, MKL reaches less than half of oneDNN's, so products there are 1x1 convolutions. The processor alone
    decides, not a measurement, so that a run can be repeated bit by bit.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As in TorchFunctionMode."""
        fast = FASTER.get(func)
        return (fast or func)(*args, **(kwargs or {}))


def mkl_is_slow() -> bool:
    """Whether PyTorch has both libraries and the processor is one of AMD's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    information = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (information.read_text() if information.is_file() else platform.processor())


def is_float32_on_cpu(x: Tensor) -> bool:
    """Whether products with `x` are made in float32 by a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: `x (..., K)` by `weight (N, K)` to `(..., N)`, as a 1x1 convolution."""
    if not is_float32_on_cpu(x) or x.numel() * len(weight) < SMALLEST_PRODUCT:
        return F.linear(x, weight, bias)
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, K, M, 1), channels last
    out = F.conv2d(image, weight[:, :, None, None], bias)  # (1, N, M, 1)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y`; `(B, M, K)` by `(B, K, N)`, or by one `(K, N)` for all, by `linear`."""
    if x.dim() != 3 or y.dim() not in (2, 3) or (y.dim() == 3 and len(x) != len(y)) or not is_float32_on_cpu(x):
        return x @ y
    return linear(x, y.T) if y.dim() == 2 else torch.stack([linear(a, b.T) for a, b in zip(x, y, strict=True)])


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """`F.conv2d`; a large 3x3 convolution without stride, dilation, groups or gradients by `winograd`."""
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if learns or weight.shape[1] <= SMALLEST_WINOGRAD or not is_float32_on_cpu(x) or x.dim() != 4:
        return F.conv2d(x, weight, bias, *args, **kwargs)
    options = dict(zip(("stride", "padding", "dilation", "groups"), args, strict=False)) | kwargs
    plain = {"stride": ((1, 1), 1), "padding": ((1, 1), 1), "dilation": ((1, 1), 1), "groups": (1,)}
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    if weight.shape[2:] != (3, 3) or any(value not in plain[key] for key, value in (defaults | options).items()):
        return F.conv2d(x, weight, bias, *args, **kwargs)
    return winograd(x, weight, bias)


def faster_functions(slow_mkl: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    """What replaces which function of PyTorch."""
    if slow_mkl:
        products = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
        return {F.linear: linear, **dict.fromkeys(products, matmul)}
    return {F.conv2d: conv2d}


FASTER = faster_functions(mkl_is_slow())


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """3x3 convolution, padding 1, by F(2x2, 3x3): 16 multiplications instead of 36 for 4 outputs.

    `x (B, C, h, w)`, `weight (O, C, 3, 3)` to `(B, O, h, w)`, which lies channels last. Images are cut into overlapping
    tiles of 4 x 4; a tile and the weights are changed linearly, multiplied, and the products changed back.
    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1.
    """
    height, width = x.shape[-2:]
    down, right = height + height % 2, width + width % 2
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + right - width, 1, 1 + down - height))
    tiles = _change(padded, x.new_empty(16, x.shape[0] * (down // 2) * (right // 2), x.shape[1]))
    matrix = x.new_tensor(WINOGRAD_WEIGHTS)
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


class FastBaseLearner(BaseLearner):
    """The base learner with half of its largest convolution's multiplications."""

    def features(self, f4: Tensor) -> Tensor:
        """As in BaseLearner; the convolution is a sum over both halves of its input channels, f4 and the pools."""
        channels = f4.shape[1]
        own = F.conv2d(f4, self.conv.weight[:, :channels], self.conv.bias, padding=1)
        return self.bn(own + conv_upsampled(self.ppm(f4), self.conv.weight[:, channels:], own.shape[-2:]))


def conv_upsampled(pools: list[Tensor], weight: Tensor, size: Sequence[int]) -> Tensor:
    """3x3 convolution, padding 1, over cat(resize(pool, size) for pool in pools), without making that map.

    Resizing is linear, so the nine taps are applied to the few cells of each pool and their results spread with the
    shifted interpolation weights. `pools`: `(B, c_i, bin_i, bin_i)`; `weight`: `(O, sum c_i, 3, 3)`; returns
    `(B, O, *size)`.
    """
    taps, spread = [], []
    for pool, kernel in zip(pools, weight.split([p.shape[1] for p in pools], dim=1), strict=True):
        taps.append(torch.einsum("bcn,ocyx->boyxn", pool.flatten(2), kernel).flatten(2))  # (B, O, 9 * cells)
        spread.append(_shifted_interpolation(pool.shape[-1], size, pool).flatten(0, 2))  # (9 * cells, h * w)
    return (torch.cat(taps, dim=2) @ torch.cat(spread)).unflatten(-1, size)


def _shifted_interpolation(cells: int, size: Sequence[int], like: Tensor) -> Tensor:
    """How much of each cell every tap (dy, dx) sees at every position: `(3, 3, cells * cells, h * w)`."""
    eye = torch.eye(cells * cells, dtype=like.dtype, device=like.device).view(1, -1, cells, cells)
    padded = F.pad(resize(eye, size), (1, 1, 1, 1))[0]  # (cells * cells, h + 2, w + 2)
    height, width = size
    return torch.stack(
        [torch.stack([padded[:, y : y + height, x : x + width].flatten(1) for x in range(3)]) for y in range(3)]
    )

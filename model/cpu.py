"""What makes networks fast on a CPU, outside of their definitions and with the same results up to rounding.

`fast_products` is entered around a network and replaces products and convolutions as they are called; the frozen base
learner is built as `FastBaseLearner`.
"""

import platform
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from model.parts.base_learner import BaseLearner
from model.resize import resize

ZEN_5 = 26  # the number of the processor's family
SMALLEST_PRODUCT = 2**20  # multiplications of a product that is worth the convolution's longer way
SMALLEST_WINOGRAD = 256  # channels from which on products cost more than the changes around them
MOST_CHANNELS = 512  # whose tiles are held at once: memory that a process keeps, not pages new from the system
MOST_TILES = 256  # changed at once, but for those of one image
TILE = 4  # outputs along a side
WINDOW = TILE + 2  # inputs along a side
POINTS = (0.0, 2**-0.5, -(2**-0.5), 2**0.5, -(2**0.5))  # more exact than 0, 1, -1, 2 and -2


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a network on this device computes its products the fastest way."""
    return FastProducts() if device.type == "cpu" else nullcontext()


class FastProducts(TorchFunctionMode):
    """Replaces float32 products by convolutions where MKL is slow, and wide 3x3 convolutions by Winograd's way.

    PyTorch multiplies float32 matrices by MKL and convolves by oneDNN. On most processors both reach the same speed; on
    AMD's from Zen 5 on, MKL reaches less than half of oneDNN's, so products there are 1x1 convolutions. The processor
    alone decides, not a measurement, so that a run can be repeated bit by bit.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As in TorchFunctionMode."""
        fast = FASTER.get(func)
        return (fast or func)(*args, **(kwargs or {}))


def mkl_is_slow() -> bool:
    """Whether PyTorch has both libraries and the processor is one of AMD's whose AVX-512 MKL leaves unused.

    Zen 4 has it too, but multiplies 256 bits at a time, so nothing is lost there.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    information = Path("/proc/cpuinfo")
    processor = information.read_text() if information.is_file() else platform.processor()
    family = re.search(r"family\s*:? (\d+)", processor, re.IGNORECASE)
    is_wide = family is not None and int(family[1]) >= ZEN_5 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "AuthenticAMD" in processor and is_wide


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
    """`F.conv2d`; a wide 3x3 convolution that keeps the size and needs no gradients by `winograd` where that pays."""
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    wide = weight.shape[2:] == (3, 3) and min(weight.shape[:2]) >= SMALLEST_WINOGRAD and not weight.is_inference()
    if learns or not wide or x.dim() != 4 or not is_float32_on_cpu(x) or torch.compiler.is_compiling():
        return F.conv2d(x, weight, bias, *args, **kwargs)
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    options = defaults | dict(zip(defaults, args, strict=False)) | kwargs
    stride, padding, dilation, groups = (_along_a_side(options[key]) for key in defaults)
    if (stride, groups) != (1, 1) or padding != dilation or not isinstance(dilation, int):
        return F.conv2d(x, weight, bias, *args, **kwargs)
    if 2 * WINDOW**2 * _tiles(x.shape[2], dilation) * _tiles(x.shape[3], dilation) > 9 * x.shape[2] * x.shape[3]:
        return F.conv2d(x, weight, bias, *args, **kwargs)  # less than half of the multiplications would be saved
    return winograd(x, winograd_kernels(weight), bias, dilation)


def _along_a_side(setting: Any) -> Any:
    """A setting of a convolution that is the same along both sides as one value."""
    return setting[0] if isinstance(setting, Sequence) and len({*setting}) == 1 else setting


def _tiles(side: int, dilation: int) -> int:
    """Tiles along a side, whose outputs lie `dilation` apart."""
    return -(-side // (TILE * dilation)) * dilation


def faster_functions(slow_mkl: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    """What replaces which function of PyTorch."""
    if slow_mkl:
        products = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
        return {F.conv2d: conv2d, F.linear: linear, **dict.fromkeys(products, matmul)}
    return {F.conv2d: conv2d}


FASTER = faster_functions(mkl_is_slow())


@cache
def winograd_changes(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The linear changes of a tile's inputs (36, 36), of a kernel (36, 9) and of products to outputs (16, 36).

    They are those of multiplying polynomials by their values at POINTS and at infinity, transposed, along both sides.
    """

    def values(coefficients: int) -> Tensor:
        finite = torch.tensor(POINTS, dtype=torch.float64)[:, None] ** torch.arange(coefficients)
        return torch.cat([finite, torch.eye(coefficients, dtype=torch.float64)[-1:]])

    along = torch.linalg.inv(values(WINDOW)).T, values(WINDOW - TILE + 1), values(TILE).T
    inputs, kernel, outputs = (torch.kron(change.to(dtype), change.to(dtype)) for change in along)
    return inputs, kernel, outputs


def winograd_kernels(weight: Tensor) -> Tensor:
    """`weight (O, C, 3, 3)` as `winograd` takes it, (36, C, O); kept at the tensor until its values change."""
    version = weight._version, weight.data_ptr()
    known, kernels = getattr(weight, "winograd_kernels", (None, None))
    if kernels is None or known != version:
        kernels = winograd_changes(weight.dtype)[1] @ weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
        kernels = kernels.view(-1, *weight.shape[1::-1])
        weight.winograd_kernels = version, kernels  # type: ignore[attr-defined]
    return kernels


def winograd(x: Tensor, kernels: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """3x3 convolution, padding as dilation, by F(4x4, 3x3): 36 multiplications instead of 144 for 16 outputs.

    `x (B, C, h, w)`, `kernels (36, C, O)` to `(B, O, h, w)`, which lies channels last. Images are cut into overlapping
    tiles of 6 x 6 positions that lie `dilation` apart; a tile is changed linearly, multiplied, and the products are
    changed back. With these points the rounding is 0.8 to 1.5 times that of the direct way.
    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.
    """
    height, width = x.shape[-2:]
    rows, columns = (-(-side // (TILE * dilation)) for side in (height, width))
    out = x.new_empty(len(x), rows * TILE * dilation, columns * TILE * dilation, kernels.shape[2])
    outputs, multiply = winograd_changes(x.dtype)[2], FASTER.get(torch.matmul, torch.matmul)
    at_once = max(1, MOST_TILES // (rows * columns * dilation**2))
    for images, results in zip(x.split(at_once), out.split(at_once), strict=True):
        parts = zip(images.split(MOST_CHANNELS, dim=1), kernels.split(MOST_CHANNELS, dim=1), strict=True)
        products = reduce(torch.add, (multiply(_changed(part, rows, columns, dilation), some) for part, some in parts))
        tiles = (outputs @ products.flatten(1)).view(TILE, TILE, len(images), rows, dilation, columns, dilation, -1)
        whole = results.view(len(images), rows, TILE, dilation, columns, TILE, dilation, -1)
        whole.copy_(tiles.permute(2, 3, 0, 4, 5, 1, 6, 7))
    out = out[:, :height, :width]
    return (out if bias is None else out.add_(bias)).permute(0, 3, 1, 2)


def _changed(images: Tensor, rows: int, columns: int, dilation: int) -> Tensor:
    """The changed tiles of `images (B, C, h, w)`, (36, B * tiles, C)."""
    step, channels = TILE * dilation, images.shape[1]
    below, right = rows * step - images.shape[2], columns * step - images.shape[3]
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, dilation, dilation + right, dilation, dilation + below))
    image, row, column, _ = padded.stride()
    change = winograd_changes(images.dtype)[0]
    tiles = padded.as_strided(
        (WINDOW, WINDOW, len(images), rows, dilation, columns, dilation, channels),
        (dilation * row, dilation * column, image, step * row, row, step * column, column, 1),
    )
    return (change @ tiles.reshape(len(change), -1)).view(len(change), -1, channels)


class FastBaseLearner(BaseLearner):
    """The base learner with half of its largest convolution's multiplications."""

    halves: tuple[Tensor, ...] = ()  # frozen weights of the convolution, for f4 and for the pools

    def features(self, f4: Tensor) -> Tensor:
        """As in BaseLearner; the convolution is a sum over both halves of its input channels, f4 and the pools."""
        weight = self.conv.weight
        if not weight.requires_grad and (not self.halves or self.halves[0].data_ptr() != weight.data_ptr()):
            self.halves = weight.detach().split(f4.shape[1], dim=1)
        for_own, for_pools = weight.split(f4.shape[1], dim=1) if weight.requires_grad else self.halves
        own = F.conv2d(f4, for_own, self.conv.bias, padding=1)
        return self.bn(own + conv_upsampled(self.ppm(f4), for_pools, own.shape[-2:]))


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

"""Matrix products by the faster of the two libraries that PyTorch calls on a CPU.

PyTorch multiplies float32 matrices by MKL and convolves by oneDNN. On Intel's processors both reach the same speed; on
AMD's, MKL reaches less than half of oneDNN's, so products there are 1x1 convolutions. The processor alone decides, not
a measurement, so that a run can be repeated bit by bit.
"""

import platform
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 2**20  # multiplications of a product that is worth the convolution's longer way


def mkl_is_slow() -> bool:
    """Whether PyTorch has both libraries and the processor is one of AMD's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    information = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (information.read_text() if information.is_file() else platform.processor())


CONVOLVES = mkl_is_slow()


def is_float32_on_cpu(x: Tensor) -> bool:
    """Whether products with `x` are made in float32 by a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: `x (..., K)` by `weight (N, K)` to `(..., N)`."""
    if not (CONVOLVES and is_float32_on_cpu(x) and x.numel() * len(weight) >= SMALLEST):
        return F.linear(x, weight, bias)
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, K, M, 1), channels last
    out = F.conv2d(image, weight[:, :, None, None], bias)  # (1, N, M, 1)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """`x (B, M, K)` by `y (B, K, N)`, or one `(K, N)` for all, to `(B, M, N)`."""
    if not CONVOLVES:
        return x @ y
    return linear(x, y.T) if y.dim() == 2 else torch.stack([linear(a, b.T) for a, b in zip(x, y, strict=True)])


class Linear(nn.Linear):
    """PyTorch's layer by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., K)` to `(..., N)`."""
        return linear(x, self.weight, self.bias)

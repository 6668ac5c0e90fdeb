"""Winograd's convolution against PyTorch's in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import winograd
from model.winograd import conv3x3


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 4), (12, 12), (15, 9)])
def test_it_is_the_convolution(height: int, width: int, channels_last: bool) -> None:
    x, weight, bias = torch.randn(3, 5, height, width), torch.randn(4, 5, 3, 3), torch.randn(4)
    if channels_last:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    out = winograd.winograd(x, weight, bias)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(winograd.winograd(x, weight).double() + bias[:, None, None], expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(winograd.winograd(x.double(), weight.double(), bias.double()), expected)


def test_it_rounds_no_worse_than_the_direct_way() -> None:
    x, weight = torch.randn(1, 1024, 10, 10), torch.randn(64, 1024, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct, fast = ((way - exact).norm() for way in (F.conv2d(x, weight, padding=1), winograd.winograd(x, weight)))
    assert fast <= 4 * direct


@pytest.mark.parametrize(
    ("channels", "dtype", "requires_grad", "slow_mkl", "expected"),
    [
        (520, torch.float32, False, False, True),
        (8, torch.float32, False, False, False),
        (520, torch.float64, False, False, False),
        (520, torch.float32, True, False, False),
        (520, torch.float32, False, True, False),
    ],
)
def test_it_is_taken_where_it_is_faster(
    channels: int,
    dtype: torch.dtype,
    requires_grad: bool,
    slow_mkl: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[bool] = []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        taken.append(True)
        return x

    monkeypatch.setattr(winograd, "CONVOLVES", slow_mkl)
    monkeypatch.setattr(winograd, "winograd", watched)
    x, weight = torch.randn(1, channels, 4, 4, dtype=dtype), torch.randn(2, channels, 3, 3, dtype=dtype)
    conv3x3(x, weight.requires_grad_(requires_grad))
    assert bool(taken) == expected
    with torch.autocast("cpu", torch.bfloat16):
        conv3x3(x, weight)
    assert bool(taken) == expected

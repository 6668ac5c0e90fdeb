"""Faster products and convolutions against PyTorch's in float64, forward and backward, whatever the processor is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import cpu
from model.cpu import FastBaseLearner, FastProducts, conv_upsampled
from model.parts.base_learner import BINS, BaseLearner
from model.resize import resize


@pytest.fixture
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose products are convolutions, however small."""
    monkeypatch.setattr(cpu, "FASTER", cpu.faster_functions(slow_mkl=True))
    monkeypatch.setattr(cpu, "SMALLEST_PRODUCT", 0)


@pytest.fixture
def fast_mkl(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A processor whose large convolutions are Winograd's; returns the channels of those that were."""
    taken: list[int] = []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        taken.append(weight.shape[1])
        return winograd(x, weight, bias)

    winograd = cpu.winograd
    monkeypatch.setattr(cpu, "winograd", watched)
    monkeypatch.setattr(cpu, "FASTER", cpu.faster_functions(slow_mkl=False))
    return taken


def check(actual: Tensor, expected: Tensor, leaves: list[Tensor], exact: list[Tensor]) -> None:
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(actual)
    gradients = torch.autograd.grad((actual * weight).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    for gradient, value in zip(gradients, wanted, strict=True):
        assert (gradient - value).abs().max() <= 1e-5 * value.abs().max()


@pytest.mark.usefixtures("slow_mkl")
@pytest.mark.parametrize("shape", [(48,), (1, 48), (2, 7, 5, 48), (3, 65, 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_are_convolutions(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(48, 33, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    leaves = [x, *layer.parameters()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = exact[0] @ exact[1].T + (exact[2] if bias else 0)
    with FastProducts():
        out = layer(x)
    assert "Convolution" in _operations(out)
    check(out, expected, leaves, exact)


@pytest.mark.usefixtures("slow_mkl")
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_batched_products_are_convolutions(batch: int | None) -> None:
    leaves = [torch.randn(3, 40, 21, requires_grad=True), torch.randn(*([3] if batch else []), 21, 19).requires_grad_()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with FastProducts():
        out = leaves[0] @ leaves[1]
    assert "Convolution" in _operations(out)
    check(out, exact[0] @ exact[1], leaves, exact)


@pytest.mark.usefixtures("slow_mkl")
def test_other_numbers_and_shapes_are_left_to_pytorch() -> None:
    x, w = torch.randn(6, 30, 8).transpose(0, 1), torch.randn(8, 24)[:, ::2].T
    with FastProducts():
        torch.testing.assert_close(F.linear(x, w), torch.einsum("abk,nk->abn", x, w), atol=1e-5, rtol=1e-5)
        assert torch.equal(F.linear(x.double(), w.double()), x.double() @ w.double().T)
        assert torch.equal(x[0] @ w.T, torch.mm(x[0], w.T))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.linear(x, w).dtype == torch.bfloat16


@pytest.mark.parametrize(("vendor", "slow"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processor_decides(vendor: str, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: f"vendor_id\t: {vendor}\n")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert cpu.mkl_is_slow() == (slow and has_both)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 4), (12, 12), (15, 9)])
def test_winograds_way_is_the_convolution(height: int, width: int, channels_last: bool) -> None:
    x, weight, bias = torch.randn(3, 5, height, width), torch.randn(4, 5, 3, 3), torch.randn(4)
    if channels_last:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    out = cpu.winograd(x, weight, bias)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(cpu.winograd(x, weight).double() + bias[:, None, None], expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(cpu.winograd(x.double(), weight.double(), bias.double()), expected)


def test_winograds_way_rounds_no_worse_than_the_direct_one() -> None:
    x, weight = torch.randn(1, 1024, 10, 10), torch.randn(64, 1024, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct, fast = ((way - exact).norm() for way in (F.conv2d(x, weight, padding=1), cpu.winograd(x, weight)))
    assert fast <= 4 * direct


@pytest.mark.parametrize(
    ("channels", "options", "expected"),
    [
        (520, {}, True),
        (520, {"padding": (1, 1), "stride": (1, 1)}, True),
        (8, {}, False),
        (520, {"padding": 0}, False),
        (520, {"dilation": 2, "padding": 2}, False),
        (520, {"stride": 2}, False),
        (520, {"padding": "same"}, False),
    ],
)
def test_only_large_plain_convolutions_go_winograds_way(
    channels: int, options: dict[str, Any], expected: bool, fast_mkl: list[int]
) -> None:
    x, weight, options = torch.randn(1, channels, 6, 6), torch.randn(2, channels, 3, 3), {"padding": 1} | options
    wanted = F.conv2d(x, weight, None, **options)
    with FastProducts():
        out = F.conv2d(x, weight, None, **options)
        assert bool(fast_mkl) == expected
        torch.testing.assert_close(out, wanted, atol=1e-3, rtol=1e-3)
        F.conv2d(x.double(), weight.double(), None, **options)
        F.conv2d(x, weight.clone().requires_grad_(), None, **options)
        with torch.autocast("cpu", torch.bfloat16):
            F.conv2d(x, weight, None, **options)
    assert bool(fast_mkl) == expected and len(fast_mkl) <= 1


@pytest.mark.parametrize("size", [(9, 9), (7, 12), (60, 60), (3, 2)])
def test_convolution_over_upsampled_pools_equals_the_plain_one(size: tuple[int, int]) -> None:
    pools = [torch.randn(2, 3, bins, bins, dtype=torch.float64, requires_grad=True) for bins in BINS]
    weight = torch.randn(5, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(torch.cat([resize(pool, size) for pool in pools], dim=1), weight, padding=1)
    actual = conv_upsampled(pools, weight, size)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, [*pools, weight], upstream),
        torch.autograd.grad(expected, [*pools, weight], upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_fast_base_learner_is_the_plain_one() -> None:
    plain, fast = BaseLearner(16, base_classes=3).eval(), FastBaseLearner(16, base_classes=3).eval()
    fast.load_state_dict(plain.state_dict())
    f4 = torch.randn(2, 16, 9, 9)
    torch.testing.assert_close(fast(f4), plain(f4), atol=1e-5, rtol=1e-4)


def _operations(out: Tensor) -> str:
    """The names of the operations behind a tensor."""
    names, nodes = "", [out.grad_fn]
    while nodes:
        node = nodes.pop()
        names += node.name() if node else ""
        nodes += [following for following, _ in node.next_functions] if node else []
    return names

"""Faster products and convolutions against PyTorch's in float64, forward and backward, whatever the processor is."""

import copy
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
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The channels of the convolutions that went Winograd's way."""
    seen: list[int] = []

    def watched(x: Tensor, *args: Any) -> Tensor:
        seen.append(x.shape[1])
        return winograd(x, *args)

    winograd = cpu.winograd
    monkeypatch.setattr(cpu, "winograd", watched)
    return seen


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


@pytest.mark.parametrize(
    ("vendor", "family", "capability", "slow"),
    [
        ("AuthenticAMD", 26, "AVX512", True),
        ("AuthenticAMD", 25, "AVX512", False),  # Zen 4
        ("AuthenticAMD", 26, "AVX2", False),
        ("GenuineIntel", 6, "AVX512", False),
    ],
)
def test_the_processor_decides(
    vendor: str, family: int, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: f"vendor_id\t: {vendor}\ncpu family\t: {family}\n")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert cpu.mkl_is_slow() == (slow and has_both)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 4), (12, 12), (15, 9)])
def test_winograds_way_is_the_convolution(
    height: int, width: int, dilation: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "MOST_CHANNELS", 2)  # so that five channels are three parts
    monkeypatch.setattr(cpu, "MOST_TILES", 7)
    x, weight, bias = torch.randn(3, 5, height, width), torch.randn(4, 5, 3, 3), torch.randn(4)
    if channels_last:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    kernels = cpu.winograd_kernels(weight.double())
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=dilation, dilation=dilation)
    torch.testing.assert_close(cpu.winograd(x.double(), kernels, bias.double(), dilation), expected)
    out = cpu.winograd(x, cpu.winograd_kernels(weight), None, dilation)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.double() + bias[:, None, None], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("slow_mkl", [False, True])
def test_winograds_way_rounds_no_worse_than_the_direct_one(slow_mkl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "FASTER", cpu.faster_functions(slow_mkl))
    last = torch.channels_last  # as in networks; other ways round otherwise
    x, weight = torch.randn(1, 1024, 12, 12).to(memory_format=last), torch.randn(64, 1024, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    fast = cpu.winograd(x, cpu.winograd_kernels(weight))
    direct, fast = ((way - exact).norm() for way in (F.conv2d(x, weight, padding=1), fast))
    assert fast <= 2 * direct


@pytest.mark.parametrize(
    ("channels", "size", "options", "expected"),
    [
        (260, 8, {}, True),
        (260, 8, {"padding": (1, 1), "stride": (1, 1)}, True),
        (260, 16, {"dilation": 2, "padding": 2}, True),
        (8, 8, {}, False),
        (260, 5, {}, False),
        (260, 8, {"padding": 0}, False),
        (260, 8, {"dilation": (2, 1), "padding": (2, 1)}, False),
        (260, 8, {"stride": 2}, False),
        (260, 8, {"padding": "same"}, False),
    ],
)
def test_only_wide_convolutions_that_keep_the_size_go_winograds_way(
    channels: int, size: int, options: dict[str, Any], expected: bool, taken: list[int]
) -> None:
    x, weight, options = (
        torch.randn(1, channels, size, size),
        torch.randn(260, channels, 3, 3),
        {"padding": 1} | options,
    )
    wanted = F.conv2d(x, weight, None, **options)
    with FastProducts():
        out = F.conv2d(x, weight, None, **options)
        assert bool(taken) == expected
        torch.testing.assert_close(out, wanted, atol=1e-3, rtol=1e-3)
        F.conv2d(x.double(), weight.double(), None, **options)
        F.conv2d(x, weight.clone().requires_grad_(), None, **options)
        with torch.autocast("cpu", torch.bfloat16):
            F.conv2d(x, weight, None, **options)
    assert bool(taken) == expected and len(taken) <= 1


def test_changed_weights_change_what_winograds_way_keeps_of_them() -> None:
    layer, x = nn.Conv2d(260, 260, 3, padding=1).requires_grad_(False), torch.randn(1, 260, 8, 8)
    with FastProducts(), torch.no_grad():
        before = layer(x)
        kernels = cpu.winograd_kernels(layer.weight)
        assert cpu.winograd_kernels(layer.weight) is kernels
        layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})
        torch.testing.assert_close(layer(x), 2 * before)
        layer.weight.data = torch.zeros_like(layer.weight)
        torch.testing.assert_close(layer(x), layer.bias[None, :, None, None].expand_as(before))


def test_a_base_learner_can_be_copied_while_it_learns_and_when_it_is_frozen() -> None:
    learner, x = FastBaseLearner(16, base_classes=3).eval(), torch.randn(2, 16, 8, 8)
    for frozen in (False, True):
        expected = learner.requires_grad_(not frozen).features(x)
        torch.testing.assert_close(copy.deepcopy(learner).features(x), expected)


def test_the_frozen_base_learner_follows_its_weights() -> None:
    learner, x = FastBaseLearner(520, base_classes=3).eval().requires_grad_(False), torch.randn(1, 520, 8, 8)
    with FastProducts():
        learner.features(x)
        nn.init.normal_(learner.conv.weight)
        plain = BaseLearner(520, base_classes=3).eval()
        plain.load_state_dict(learner.state_dict())
        torch.testing.assert_close(learner.features(x), plain.features(x), rtol=1e-4, atol=1e-2)


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

"""Products as 1x1 convolutions against float64, forward and backward, whatever the processor is."""

from pathlib import Path

import pytest
import torch

from model import products


@pytest.fixture(autouse=True, params=[False, True])
def convolves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CONVOLVES", request.param)
    monkeypatch.setattr(products, "SMALLEST", 0)


def check(actual: torch.Tensor, expected: torch.Tensor, leaves: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(actual)
    gradients = torch.autograd.grad((actual * weight).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    for gradient, value in zip(gradients, wanted, strict=True):
        assert (gradient - value).abs().max() <= 1e-5 * value.abs().max()


@pytest.mark.parametrize("shape", [(48,), (1, 48), (2, 7, 5, 48), (3, 65, 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = products.Linear(48, 33, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    leaves = [x, *layer.parameters()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = exact[0] @ exact[1].T + (exact[2] if bias else 0)
    check(layer(x), expected, leaves, exact)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_batched_product(batch: int | None) -> None:
    leaves = [torch.randn(3, 40, 21, requires_grad=True), torch.randn(*([3] if batch else []), 21, 19).requires_grad_()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    check(products.matmul(*leaves), exact[0] @ exact[1], leaves, exact)


def test_transposed_and_strided_inputs() -> None:
    x, w = torch.randn(6, 30, 8).transpose(0, 1), torch.randn(8, 24)[:, ::2].T
    torch.testing.assert_close(products.linear(x, w), torch.einsum("abk,nk->abn", x, w), atol=1e-5, rtol=1e-5)


def test_other_numbers_are_left_to_pytorch() -> None:
    x, w = torch.randn(4, 8), torch.randn(3, 8)
    assert torch.equal(products.linear(x.double(), w.double()), x.double() @ w.double().T)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, w).dtype == torch.bfloat16


@pytest.mark.parametrize(("vendor", "slow"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processor_decides(vendor: str, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: f"vendor_id\t: {vendor}\n")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert products.mkl_is_slow() == (slow and has_both)

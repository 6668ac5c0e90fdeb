"""The mamba_ssm backend on a CPU, with a stand-in for what it calls: the function of the package mamba-ssm."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import BackendError
from model.scan.mamba_ssm import is_available, selective_scan_mamba_ssm
from tests.model.scan.naive import assert_close, expected, random_inputs


def cuda_function(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """The contract for u, delta (b, d, l), A (d, n) and B, C (b, g, n, l); no gradient comes from the last state."""
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    assert all(x.dtype == torch.float32 for x in (u, delta, A, B, C))
    assert delta.shape == u.shape and A.shape == (channels, states) and channels % groups == 0
    assert B.shape == C.shape == (batch, groups, states, length) and z is None
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    B, C = (x.repeat_interleave(channels // groups, 1) for x in (B, C))  # (b, d, n, l)
    h = u.new_zeros(batch, channels, states)
    outputs = []
    for t in range(length):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * u[:, :, t, None] * B[..., t]
        outputs.append((h * C[..., t]).sum(-1))
    y = torch.stack(outputs, -1) if D is None else torch.stack(outputs, -1) + u * D[:, None]
    return (y, h.detach()) if return_last_state else y


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the package importable with the stand-in as its function."""
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(module, "selective_scan_fn", cuda_function, raising=False)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize(
    ("directions", "length", "states", "period"),
    [
        (1, 11, 8, 0),
        (4, 12, 16, 0),
        (2, 9, 64, 0),
        (2, 5, 8, 1),
        (3, 13, 16, 5),
        (4, 12, 8, 4),
        (1, 7, 64, 3),
        (2, 7, 16, 9),
    ],
)
def test_outputs_and_gradients(
    package: None, directions: int, length: int, states: int, period: int, initial: bool
) -> None:
    inputs = random_inputs(2, directions, length, 3, states, period, initial, plain=length == 9)
    wanted = expected(inputs)
    leaves = {name: getattr(inputs, name).requires_grad_() for name in wanted.gradients}
    y, final = selective_scan_mamba_ssm(inputs)
    assert_close({"y": y, "final": final}, wanted.outputs, 1e-5)
    loss = (y * wanted.grad_y).sum() + (final * wanted.grad_final).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    assert_close(dict(zip(leaves, gradients, strict=True)), wanted.gradients, 1e-4)


@pytest.mark.parametrize("period", [1, 4])
def test_a_recap_without_decay_replaces_the_state(package: None, period: int) -> None:
    inputs = random_inputs(2, 3, 11, 5, 8, period, initial=True)
    wanted = expected(inputs._replace(decay=torch.zeros_like(inputs.decay)))
    inputs = inputs._replace(decay=None)
    leaves = {name: getattr(inputs, name).requires_grad_() for name in wanted.gradients if name != "decay"}
    y, final = selective_scan_mamba_ssm(inputs)
    assert_close({"y": y, "final": final}, wanted.outputs, 1e-5)
    loss = (y * wanted.grad_y).sum() + (final * wanted.grad_final).sum()
    for (name, leaf), gradient in zip(
        leaves.items(), torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True
    ):
        found = torch.zeros_like(leaf) if gradient is None else gradient  # of a state that is replaced at once
        assert_close({name: found}, {name: wanted.gradients[name]}, 1e-4)


def test_states_pass_through_tokens_exactly(package: None) -> None:
    """Steps of nothing: what enters as the initial state leaves as the final state bit by bit."""
    inputs = random_inputs(2, 3, 4, 5, 16, initial=True, plain=True)
    inputs = inputs._replace(delta=torch.zeros_like(inputs.delta), initial_state=inputs.initial_state * 1e3)
    assert torch.equal(selective_scan_mamba_ssm(inputs)[1], inputs.initial_state)


def test_is_available_with_the_package(package: None) -> None:
    assert is_available()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert not is_available()
    with pytest.raises(BackendError, match="pip install mamba-ssm"):
        selective_scan_mamba_ssm(random_inputs(1, 1, 3, 2, 4))

"""`selective_scan_fn` over the grid that mamba-ssm's own test of this function spans, against a loop in float64."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import selective_scan_fn

BATCH, CHANNELS, STATES = 2, 4, 8


def random_arguments(
    length: int, variable_B: bool, variable_C: bool, groups: int, with_D: bool, with_z: bool, with_bias: bool
) -> dict[str, Any]:
    def matrix(variable: bool) -> Tensor:
        if not variable:
            return torch.randn(CHANNELS, STATES)
        return torch.randn(BATCH, *([groups] if groups > 1 else []), STATES, length)

    sequence = (BATCH, CHANNELS, length)
    arguments = {
        "u": torch.randn(sequence),
        "delta": 0.5 * torch.rand(sequence),
        "A": -0.5 * torch.rand(CHANNELS, STATES),
        "B": matrix(variable_B),
        "C": matrix(variable_C),
    }
    present = {"D": with_D, "z": with_z, "delta_bias": with_bias}
    values = {"D": torch.randn(CHANNELS), "z": torch.randn(sequence), "delta_bias": 0.5 * torch.rand(CHANNELS)}
    return arguments | {name: x for name, x in values.items() if present[name]}


def loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """By the definition, token by token."""
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = torch.log1p(delta.exp()) if delta_softplus else delta

    def per_token(x: Tensor, t: int) -> Tensor:  # (B, D, N)
        if x.dim() == 2:
            return x[None]
        x = x[..., t] if x.dim() == 4 else x[:, None, :, t]
        return x.repeat_interleave(CHANNELS // x.shape[1], 1)

    h, outputs = u.new_zeros(BATCH, CHANNELS, STATES), []
    for t in range(u.shape[-1]):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * u[:, :, t, None] * per_token(B, t)
        outputs.append((h * per_token(C, t)).sum(-1))
    y = torch.stack(outputs, -1)
    y = y if D is None else y + u * D[:, None]
    return (y if z is None else y * F.silu(z)), h


def differentiate(function: Any, arguments: dict[str, Tensor], softplus: bool, **options: Any) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    y, state = function(**leaves, delta_softplus=softplus, **options)
    weight = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
    gradients = torch.autograd.grad((y * weight).sum() + state.sum(), list(leaves.values()))
    return {"out": y.detach(), "last_state": state.detach()} | dict(zip(leaves, gradients, strict=True))


def check(arguments: dict[str, Tensor], softplus: bool, tolerance: float) -> None:
    actual = differentiate(selective_scan_fn, arguments, softplus, return_last_state=True)
    wanted = differentiate(loop, {name: x.double() for name, x in arguments.items()}, softplus)
    for name, value in wanted.items():
        error = (actual[name] - value).abs().max() / value.abs().max().clamp(min=1e-3)
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("variable_B", "variable_C", "groups"), [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (1, 1, 2)]
)
@pytest.mark.parametrize("softplus", [False, True])
def test_grid(softplus: bool, variable_B: bool, variable_C: bool, groups: int) -> None:
    for present in itertools.product([False, True], repeat=3):
        check(random_arguments(64, variable_B, variable_C, groups, *present), softplus, 1e-4)


@pytest.mark.parametrize("length", [1, 129, 256])
def test_lengths(length: int) -> None:
    check(random_arguments(length, True, True, 2, True, True, True), True, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    """Outputs and gradients are those of the same numbers in single precision, rounded once."""
    arguments = random_arguments(64, True, True, 1, True, True, True)
    arguments |= {name: arguments[name].to(dtype) for name in ("u", "delta", "B", "C", "z")}
    upstream, results = torch.randn(BATCH, CHANNELS, 64).to(dtype), []
    for inputs in (arguments, {name: x.float() for name, x in arguments.items()}):
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        y, state = selective_scan_fn(**leaves, delta_softplus=True, return_last_state=True)
        above = [upstream.to(y.dtype), torch.ones_like(state)]
        results.append([y, state, *torch.autograd.grad([y, state], list(leaves.values()), above)])
    assert results[0][0].dtype == dtype
    assert all(torch.equal(half, single.to(half.dtype)) for half, single in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_wrong_shapes_are_named(name: str) -> None:
    arguments = random_arguments(6, True, True, 1, True, True, True)
    arguments[name] = arguments[name][:-1]
    with pytest.raises(ValueError, match=f"^{name} must have"):
        selective_scan_fn(**arguments)


def test_complex_numbers_are_refused() -> None:
    arguments = random_arguments(6, True, True, 1, True, True, True)
    arguments["A"] = arguments["A"].to(torch.complex64)
    with pytest.raises(ValueError, match="A must be real"):
        selective_scan_fn(**arguments)

"""The operator: its registration, its choice of backend, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.scan import BackendError, Recap, operator, selective_scan
from model.scan.inputs import ScanInputs
from model.scan.mamba_ssm import is_available
from tests.devices import on_gpu
from tests.model.scan.naive import assert_close, expected, on_device, random_inputs


def scan(inputs: ScanInputs, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    recap = None if inputs.recap_state is None else Recap(inputs.decay, inputs.recap_state, inputs.period)
    return selective_scan(
        *inputs[:6], skip=inputs.skip, delta_bias=inputs.delta_bias, delta_proj=inputs.delta_proj,
        delta_softplus=inputs.delta_softplus, recap=recap, initial_state=inputs.initial_state, **options,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("period", [0, 9])
def test_outputs_and_gradients(backend: str, period: int, device: torch.device) -> None:
    inputs = random_inputs(2, 3, 71, 5, 8, period, initial=period > 0, rank=period // 3)
    wanted = expected(inputs)
    inputs = on_device(inputs, device)
    leaves = {name: x.requires_grad_() for name, x in inputs.differentiable().items()}
    y, state = scan(inputs, backend=backend)
    assert_close({"y": y, "final": state}, wanted.outputs, 1e-5)
    loss = (y * wanted.grad_y.to(device)).sum() + (state * wanted.grad_final.to(device)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert_close(dict(zip(leaves, gradients, strict=True)), wanted.gradients, 1e-4)


@on_gpu
@pytest.mark.parametrize("backend", ["triton", "mamba_ssm", "reference"])
@pytest.mark.parametrize("recap", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "channels", "states", "period"),
    [(1, 64**2, 512, 16, 16**2), (1, 60**2, 96, 16, 15**2), (1, 400, 24, 64, 25), (3, 13**2, 5, 3, 10)],
)
def test_a_gpu_gives_what_the_cpu_does_at_the_networks_sizes(
    device: torch.device, backend: str, recap: bool, batch: int, length: int, channels: int, states: int, period: int,
    record_property: Callable[[str, float], None],
) -> None:  # fmt: skip
    """Against the reference in float64, twice with the same bits; the time steps are those of a trained network."""
    if backend == "mamba_ssm" and not is_available():
        pytest.skip("mamba-ssm is not installed")
    inputs = random_inputs(batch, 4, length, channels, states, period if recap else 0, initial=recap)
    wanted = outputs_and_gradients(inputs.to(torch.float64), "reference")
    found, again = (outputs_and_gradients(on_device(inputs, device), backend) for _ in range(2))
    assert all(torch.equal(found[name], again[name]) for name in found)
    errors = {name: ((found[name].cpu() - x).abs().max() / x.abs().max()).item() for name, x in wanted.items()}
    record_property("error of outputs", max(errors[name] for name in ("y", "final")))
    record_property("error of gradients", max(errors.values()))
    assert max(errors["y"], errors["final"]) < 1e-5 and max(errors.values()) < 1e-4, errors


def outputs_and_gradients(inputs: ScanInputs, backend: str) -> dict[str, torch.Tensor]:
    """By name, the gradients for fixed weights of the outputs."""
    leaves: dict[str, Any] = {name: x.detach().requires_grad_() for name, x in inputs.differentiable().items()}
    y, final = scan(inputs._replace(**leaves), backend=backend)
    weights = (torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view_as(x) for x in (y, final))
    loss = torch.stack([(x * weight).sum() for x, weight in zip((y, final), weights, strict=True)])
    gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return {"y": y.detach(), "final": final.detach(), **dict(zip(leaves, gradients, strict=True))}


def test_outputs_and_gradients_of_two_backends() -> None:
    """The comparison of GPUs, with what a CPU has."""
    inputs = random_inputs(1, 4, 20, 3, 4, period=5, initial=True)
    found, wanted = (outputs_and_gradients(inputs, backend) for backend in ("cpu", "reference"))
    assert_close(found, wanted, 1e-4)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("period", [1, 9])
def test_a_recap_without_decay_replaces_the_state(backend: str, period: int) -> None:
    inputs = random_inputs(2, 3, 71, 5, 8, period, initial=True, rank=3)
    wanted = expected(inputs._replace(decay=torch.zeros_like(inputs.decay)))
    del wanted.gradients["decay"]
    inputs = inputs._replace(decay=None)
    leaves = {name: x.requires_grad_() for name, x in inputs.differentiable().items()}
    y, state = scan(inputs, backend=backend)
    assert_close({"y": y, "final": state}, wanted.outputs, 1e-5)
    loss = (y * wanted.grad_y).sum() + (state * wanted.grad_final).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert_close(dict(zip(leaves, gradients, strict=True)), wanted.gradients, 1e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_registration(plain: bool) -> None:
    """PyTorch's own checks: schema, gradients, and the shapes told to `torch.compile` agree with what happens."""
    inputs = random_inputs(
        1, 2, 5, 3, 4, period=0 if plain else 2, initial=not plain, plain=plain, rank=0 if plain else 2
    )
    for x in inputs.differentiable().values():
        x.requires_grad_()
    torch.library.opcheck(operator._scan, (*inputs, "cpu"))
    y, state, saved = operator._scan(*inputs, "cpu")
    tests = ("test_schema", "test_faketensor")
    gradients = y.detach(), state.detach(), saved
    torch.library.opcheck(operator._scan_backward, (*gradients, *inputs, "cpu"), test_utils=tests)


def test_second_derivative_is_refused() -> None:
    inputs = random_inputs(1, 1, 3, 2, 4)
    inputs.u.requires_grad_()
    (gradient,) = torch.autograd.grad(scan(inputs, backend="cpu")[0].sum(), inputs.u, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_float64_runs_the_reference() -> None:
    inputs = random_inputs(1, 2, 7, 3, 4).to(torch.float64)
    assert scan(inputs)[0].dtype == torch.float64
    with pytest.raises(ValueError, match="float64 needs the reference"):
        scan(inputs, backend="cpu")


def test_bfloat16_outputs_keep_their_dtype() -> None:
    inputs = random_inputs(1, 2, 7, 3, 4)
    y, state = scan(inputs.to(torch.bfloat16))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), scan(inputs.to(torch.bfloat16).to(torch.float32))[0], atol=0.02, rtol=0.01)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="'gpu': must be auto"):
        scan(random_inputs(1, 1, 3, 2, 4), backend="gpu")


def test_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "model.scan.triton", None)
    with pytest.raises(BackendError, match="scan backend 'triton'"):
        scan(random_inputs(1, 1, 3, 2, 4), backend="triton")


@pytest.mark.parametrize("name", [name for name in ScanInputs._fields if name not in ("delta_softplus", "period")])
def test_wrong_shapes_are_named(name: str) -> None:
    inputs = random_inputs(2, 3, 5, 4, 6, period=2, initial=True, rank=3)
    wrong = inputs._replace(**{name: getattr(inputs, name)[..., :-1]})
    with pytest.raises(ValueError, match=r"must have the shape \("):
        scan(wrong)


def test_wrong_period_and_order() -> None:
    inputs = random_inputs(1, 1, 3, 2, 4, period=2)
    with pytest.raises(ValueError, match="period must be at least 1"):
        scan(inputs._replace(period=0))
    with pytest.raises(ValueError, match="int64"):
        scan(inputs._replace(order=inputs.order.int()))

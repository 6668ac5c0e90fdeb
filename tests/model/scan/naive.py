"""The selective scan written down token by token in float64, and random inputs for it."""

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.scan.inputs import ScanInputs


def random_inputs(
    batch: int, directions: int, length: int, channels: int, states: int, period: int = 0,
    initial: bool = False, plain: bool = False, rank: int = 0,
) -> ScanInputs:  # fmt: skip
    """Fresh float32 inputs, B, C and a delta of this rank strided as a projection leaves them.

    plain: without bias, softplus and skip.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state = (batch, directions, channels, states)
    projected = normal(batch, length, directions, max(rank, 1) + 2 * states).transpose(1, 2)
    low, B, C = projected.split([max(rank, 1), states, states], dim=-1)
    delta = low if rank else normal(batch, length, directions, channels).transpose(1, 2)
    return ScanInputs(
        u=normal(batch, length, channels),
        delta=delta.abs() if plain else delta,
        A=-torch.arange(1.0, states + 1) * torch.rand(directions, channels, 1, generator=generator),
        B=B,
        C=C,
        order=torch.stack([torch.randperm(length, generator=generator) for _ in range(directions)]),
        skip=None if plain else normal(directions, channels),
        delta_bias=None if plain else normal(directions, channels) - 2,
        delta_proj=normal(directions, channels, rank).abs() / rank if rank else None,
        delta_softplus=not plain,
        decay=torch.rand(state, generator=generator) if period else None,
        recap_state=normal(*state) if period else None,
        period=period,
        initial_state=normal(*state) if initial else None,
    )


def on_device(inputs: ScanInputs, device: torch.device) -> ScanInputs:
    """The same inputs on a device."""
    return ScanInputs(*(x.to(device) if isinstance(x, Tensor) else x for x in inputs))  # type: ignore[arg-type]


def naive_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, D) and last states (B, K, D, N), by the definition, differentiable."""
    u, delta, A, B, C, order, skip, bias, proj, softplus, decay, recap_state, period, initial_state = inputs
    (batch, length, channels), directions = u.shape, len(A)
    outputs = [[u.new_zeros(channels) for _ in range(length)] for _ in range(batch)]
    last = []
    for b in range(batch):
        for k in range(directions):
            h = u.new_zeros(A.shape[1:]) if initial_state is None else initial_state[b, k]  # (D, N)
            for t, position in enumerate(order[k].tolist()):
                if period and t % period == 0:
                    h = decay[b, k] * h + recap_state[b, k]
                step = delta[b, k, position] if proj is None else proj[k] @ delta[b, k, position]
                step = step if bias is None else step + bias[k]
                step = torch.log1p(step.exp()) if softplus else step
                h = torch.exp(step[:, None] * A[k]) * h + torch.outer(step * u[b, position], B[b, k, position])
                y = h @ C[b, k, position]
                outputs[b][position] = outputs[b][position] + (y if skip is None else y + skip[k] * u[b, position])
            last.append(h)
    y = torch.stack([torch.stack(rows) for rows in outputs])
    return y, torch.stack(last).unflatten(0, (batch, directions))


class Expected(NamedTuple):
    """What the naive scan says, in float64, and the gradients with which its own were made."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    grad_y: Tensor  # float32
    grad_final: Tensor  # float32


def expected(inputs: ScanInputs) -> Expected:
    """Outputs and gradients of the naive scan for random gradients of both outputs."""
    leaves: dict[str, Any] = {
        name: value.double().requires_grad_()
        for name, value in inputs._asdict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    y, final = naive_scan(inputs._replace(**leaves))
    grad_y, grad_final = torch.randn(y.shape), torch.randn(final.shape)
    loss = (y * grad_y).sum() + (final * grad_final).sum()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return Expected({"y": y.detach(), "final": final.detach()}, gradients, grad_y, grad_final)


def assert_close(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Names and shapes agree, and the largest difference stays below tolerance times the largest number."""
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        assert actual[name].shape == value.shape, name
        assert actual[name].dtype == torch.float32, name
        scale = value.abs().max().clamp(min=1e-3)
        assert (actual[name].cpu() - value).abs().max() <= tolerance * scale, name

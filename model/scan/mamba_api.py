"""The interface of mamba-ssm's `selective_scan_fn` on top of the operator, on every device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .operator import selective_scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan sequences as mamba-ssm's function of this name does: output (B, D, L), or that and the last state (B, D, N).

    `h = exp(delta A) h + delta B u`, `out = (C.h + D u) silu(z)`; `delta_bias` and softplus apply to delta first.

    Args: u, delta, z (B, D, L); A (D, N) real; B, C each (D, N), (B, N, L) or (B, G, N, L), where G divides D and group
    g serves the g-th D / G channels; D, delta_bias (D). The output has u's dtype, the last state is float32 (float64
    for float64 u). Differentiable in every tensor. Raises ValueError naming the argument of a wrong shape or dtype.

    Source: Mamba (arXiv 2312.00752), algorithm 2.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    tokens, delta, A, B, C = (x.to(dtype) for x in (u.transpose(1, 2), delta.transpose(1, 2), A, B, C))
    with torch.autocast(u.device.type, enabled=False):
        if B.dim() == 2 or C.dim() == 2:
            y, state = _scan_states_as_channels(tokens, delta, A, B, C, delta_bias, delta_softplus)
        else:
            y, state = _scan_groups(tokens, delta, A, B, C, delta_bias, delta_softplus)
        if D is not None:
            y = y + tokens * D
        if z is not None:
            y = y * F.silu(z.to(dtype).transpose(1, 2))
    out = y.transpose(1, 2).to(u.dtype, memory_format=torch.contiguous_format)  # (B, D, L)
    return (out, state) if return_last_state else out


def _scan_groups(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> tuple[Tensor, Tensor]:
    """Scan u, delta (B, L, D) group by group: outputs (B, L, D) and states (B, D, N)."""
    B, C = (x.unsqueeze(1) if x.dim() == 3 else x for x in (B, C))  # (B, G, N, L)
    groups = max(B.shape[1], C.shape[1])
    size = u.shape[2] // groups
    parts = []
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        B_g, C_g = (x[:, min(g, x.shape[1] - 1)].transpose(1, 2) for x in (B, C))  # (B, L, N)
        bias = None if delta_bias is None else delta_bias[part]
        parts.append(_scan(u[..., part], delta[..., part], A[part], B_g, C_g, bias, delta_softplus))
    outputs, states = zip(*parts, strict=True)
    return torch.cat(outputs, 2), torch.cat(states, 1)


def _scan_states_as_channels(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> tuple[Tensor, Tensor]:
    """The same with B or C of every channel its own: D * N channels of one state each, weighted outside the scan."""
    batch, length, channels = u.shape
    states = A.shape[1]
    B, C = (_per_channel(x, channels) for x in (B, C))  # (B or 1, L or 1, D, N)
    drive = (u.unsqueeze(-1) * B).flatten(2)  # (B, L, D * N)
    delta = delta.repeat_interleave(states, 2)
    bias = None if delta_bias is None else delta_bias.repeat_interleave(states)
    one = u.new_ones(batch, length, 1)
    h, last = _scan(drive, delta, A.reshape(-1, 1), one, one, bias, delta_softplus)
    return (h.unflatten(2, (channels, states)) * C).sum(-1), last.view(batch, channels, states)


def _per_channel(x: Tensor, channels: int) -> Tensor:
    if x.dim() == 2:
        return x[None, None]
    if x.dim() == 3:
        x = x.unsqueeze(1)
    return x.repeat_interleave(channels // x.shape[1], 1).permute(0, 3, 1, 2)


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> tuple[Tensor, Tensor]:
    """One direction of the operator: u, delta (B, L, D), B, C (B, L, N)."""
    order = torch.arange(u.shape[1], device=u.device)[None]
    bias = None if delta_bias is None else delta_bias[None]
    y, state = selective_scan(
        u, delta[:, None], A[None], B[:, None], C[:, None], order, delta_bias=bias, delta_softplus=delta_softplus
    )
    return y, state[:, 0]


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() != 3:
        raise ValueError(f"u must have the shape (batch, channels, length), not {tuple(u.shape)}")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A must have the shape ({channels}, states), not {tuple(A.shape)}")
    for name, x in {"u": u, "delta": delta, "A": A, "B": B, "C": C}.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} must be real, not {x.dtype}")
    states = A.shape[1]
    for name, x in {"B": B, "C": C}.items():
        groups = x.shape[1] if x.dim() == 4 else 1
        allowed = [(channels, states), (batch, states, length), (batch, groups, states, length)]
        if tuple(x.shape) not in allowed or groups < 1 or channels % groups:
            raise ValueError(
                f"{name} must have the shape {allowed[0]}, {allowed[1]} or ({batch}, groups, {states}, {length}) "
                f"where groups divides {channels}, not {tuple(x.shape)}"
            )
    if B.dim() == C.dim() == 4 and B.shape[1] != C.shape[1]:
        raise ValueError(f"C must have as many groups as B, {B.shape[1]}, not {C.shape[1]}")
    sequence = tuple(u.shape)
    others = {
        "delta": (delta, sequence),
        "z": (z, sequence),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in others.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {tuple(tensor.shape)}")

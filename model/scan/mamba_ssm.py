"""The selective scan by the CUDA kernels of the package mamba-ssm, where it is installed.

The kernels know neither recap nor an initial state, and no gradient flows from the last state that they return. So
states enter and leave as tokens, for which the kernels' own forward and backward passes hold: N tokens in front write a
state, one of its N numbers each, and N tokens behind read it. With recap, all patches are scanned from zero as entries
of a larger batch, their last states are composed into the true state in front of every patch, and the patches are
scanned again from there: twice the scan instead of a correction that would need a number per token, channel and state.

Gather, composition and sum over directions are differentiable PyTorch, so there is no backward pass of our own. What
it has been run on stands in docs/gpu.md.
"""

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from .inputs import BackendError, ScanInputs
from .reference import follow

TINY_STEP = 2.0**-40  # exp(TINY_STEP * A) rounds to 1, so a token of this step adds to the state and decays nothing


def is_available() -> bool:
    """Whether the package mamba-ssm is installed."""
    return find_spec("mamba_ssm") is not None


def selective_scan_mamba_ssm(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan float32 tensors as `selective_scan` does, differentiably; BackendError without the package mamba-ssm."""
    u, A, order, delta = inputs.u, inputs.A, inputs.order, inputs.time_steps()
    # (B, K, L, D or N) each
    tokens = [follow(x, order) for x in (u[:, None].expand_as(delta), delta, inputs.B, inputs.C)]
    if inputs.recap_state is None:
        scan_u, scan_delta, B, C = (x.transpose(2, 3) for x in tokens)
        y, state = _scan(A, scan_u, scan_delta, B, C, inputs.initial_state)
    else:
        y, state = _scan_patches(A, tokens, inputs.decay, inputs.recap_state, inputs.period, inputs.initial_state)
    y = follow(y.transpose(2, 3), order.argsort(1)).sum(1)  # (B, L, D)
    return (y if inputs.skip is None else y + u * inputs.skip.sum(0)), state


def _scan_patches(
    A: Tensor, tokens: list[Tensor], decay: Tensor | None, recap_state: Tensor, period: int, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scan patches with the recap in front of each: outputs (B, K, D, L) and last states (B, K, D, N)."""
    batch, _, length, _ = tokens[0].shape
    pad = -length % period  # a padded token has step 0 and changes nothing
    patches = [F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, period)).permute(2, 0, 1, 4, 3) for x in tokens]
    u, delta, B, C = (x.flatten(0, 1) for x in patches)  # (P * B, K, D or N, T)
    entries = [recap_state] * len(patches[0])  # in front of every patch
    if decay is not None:
        _, ends = _scan(A, u, delta, B, C, None)
        keeps = torch.exp(delta.sum(-1, keepdim=True) * A)  # (P * B, K, D, N)
        state = torch.zeros_like(recap_state) if state is None else state
        for number, (keep, end) in enumerate(zip(keeps.split(batch), ends.split(batch), strict=True)):
            entries[number] = decay * state + recap_state
            state = keep * entries[number] + end
    y, ends = _scan(A, u, delta, B, C, torch.cat(entries))
    state = ends[-batch:]
    y = y.unflatten(0, (-1, batch)).permute(1, 2, 3, 0, 4).flatten(3)  # (B, K, D, P * T)
    return y[..., :length], state


def _scan(A: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scan u, delta (B, K, D, L) with B, C (B, K, N, L) from `state` or zero: outputs and last states (B, K, D, N)."""
    batch, directions, channels, length = u.shape
    states = A.shape[-1]
    eye = torch.eye(states, device=u.device, dtype=u.dtype).expand(batch, directions, -1, -1)
    nothing, no_step = torch.zeros_like(eye), u.new_zeros(batch, directions, channels, states)
    before = [] if state is None else [(state / TINY_STEP, no_step + TINY_STEP, eye, nothing)]
    sequence = [*before, (u, delta, B, C), (no_step, no_step, nothing, eye)]
    u, delta, B, C = (torch.cat(parts, dim=-1) for parts in zip(*sequence, strict=True))
    scan = _selective_scan_fn()
    y = scan(u.flatten(1, 2), delta.flatten(1, 2), A.flatten(0, 1), B, C).unflatten(1, (directions, channels))
    return y[..., -states - length : -states], y[..., -states:]


def _selective_scan_fn():  # type: ignore[no-untyped-def]
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        raise BackendError(f"scan backend 'mamba_ssm': {error}; pip install mamba-ssm, or use triton") from error
    return selective_scan_fn

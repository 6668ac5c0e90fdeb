"""The selective scan in plain PyTorch: the oracle of the other backends, and what runs without a compiler."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .inputs import ScanInputs

CHUNK = 64  # tokens whose states exist at the same time


def selective_scan_reference(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan as `selective_scan` does, in the inputs' dtype; the backward pass recomputes the states chunk by chunk."""
    u, A, order, length = inputs.u, inputs.A, inputs.order, inputs.u.shape[1]
    delta, B, C = (follow(x, order) for x in (inputs.time_steps(), inputs.B, inputs.C))  # (B, K, L, D or N)
    drive = delta * u[:, order]  # (B, K, L, D)
    state = inputs.initial_state
    if state is None:
        state = u.new_zeros(len(u), *A.shape)

    recap = None if inputs.decay is None or inputs.recap_state is None else (inputs.decay, inputs.recap_state)
    outputs = []
    recomputed = torch.is_grad_enabled() and length > CHUNK
    for start in range(0, length, CHUNK):
        part = slice(start, min(start + CHUNK, length))
        recaps = [recap is not None and t % inputs.period == 0 for t in range(part.start, part.stop)]
        tokens = (delta[:, :, part], drive[:, :, part], A, B[:, :, part], C[:, :, part])
        arguments = (state, *tokens, recap, recaps)
        if recomputed:
            output, state = checkpoint(_scan_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            output, state = _scan_chunk(*arguments)
        outputs.append(output)

    y = follow(torch.cat(outputs, 2), order.argsort(1)).sum(1)  # (B, L, D)
    return (y if inputs.skip is None else y + u * inputs.skip.sum(0)), state


def _scan_chunk(
    state: Tensor,
    delta: Tensor,
    drive: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    recap: tuple[Tensor, Tensor] | None,
    recaps: list[bool],
) -> tuple[Tensor, Tensor]:
    """Scan consecutive tokens of all directions: delta, drive (B, K, T, D) and B, C (B, K, T, N) in scan order."""
    keep = torch.exp(delta[..., None] * A[:, None])  # (B, K, T, D, N)
    gain = drive[..., None] * B[..., None, :]  # (B, K, T, D, N)
    states = []
    for keep_t, gain_t, recap_here in zip(keep.unbind(2), gain.unbind(2), recaps, strict=True):
        if recap is not None and recap_here:
            state = recap[0] * state + recap[1]
        state = keep_t * state + gain_t  # (B, K, D, N)
        states.append(state)
    output = torch.matmul(torch.stack(states, 2), C[..., None]).squeeze(-1)  # (B, K, T, D)
    return output, state


def follow(x: Tensor, order: Tensor) -> Tensor:
    """Take the tokens of x (B, K, L, C) in the order (K, L) of each direction."""
    return x.gather(2, order[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[-1]))

"""The selective scan on a GPU: Triton kernels, forward and backward.

The sequence is cut into chunks of at most 16 tokens that never straddle a recap boundary, and all chunks of all
directions, batch entries and channel blocks run at the same time, in three steps. Each chunk is an affine map of the
state, `h <- exp(A * sum dt) * h + end`, so (1) every chunk's `end` is found from a zero state, (2) a short loop over
chunks composes the maps, with the recap's in front of every patch, into the true state before each chunk, (3) every
chunk is scanned again from its true state. Scanning again costs no more than correcting the outputs would (one product
with the decays of all tokens, states and channels) and leaves one way to compute an output. The backward pass does the
same on the states' gradients with the maps transposed, from the last chunk to the first; states inside a chunk are
recomputed from the saved state before it. Directions are summed by PyTorch in a fixed order and no atomics are used, so
results are deterministic.

What they have been run on stands in docs/gpu.md.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .inputs import BackendError, ScanInputs

MAX_CHUNK = 16  # tokens; more need more registers than there are: docs/gpu.md
TILE = 128  # channels x states of a program: one per thread, so that each thread has a chunk's tokens to itself
WARPS = 4


@triton.jit
def _compose(decay, gain, next_decay, next_gain):
    """The affine map x -> decay * x + gain followed by the next."""
    return decay * next_decay, next_decay * gain + next_gain


@triton.constexpr_function
def _axis_per_bit(shape):
    return [2] * (shape[0].bit_length() - 1) + list(shape[1:])


@triton.jit
def _reverse(x):
    """Reverse the tokens of x (T, D, N): bit by bit of their index, swapping a and b as (a + b) - a and (a + b) - b.

    A thread has all tokens, so this compiles to renamed registers; associative_scan(reverse=True) would shuffle lanes.
    """
    bits = tl.reshape(x.to(tl.int32, bitcast=True), _axis_per_bit(x.shape))
    for i in tl.static_range(len(bits.shape) - 2):
        bits = tl.sum(bits, i, keep_dims=True) - bits
    return tl.reshape(bits, x.shape).to(tl.float32, bitcast=True)


@triton.jit
def _tokens(order, k, chunk, length, period, patch_chunks, ahead, CHUNK: tl.constexpr):
    """Image positions of the chunk's tokens, each moved on by `ahead`, and which of them are inside the chunk."""
    patch = chunk // patch_chunks
    first = patch * period + (chunk % patch_chunks) * CHUNK
    end = tl.minimum(tl.minimum(first + CHUNK, (patch + 1) * period), length)
    token = first + ahead + tl.arange(0, CHUNK)
    return tl.load(order + k * length + token, mask=token < end, other=0), token < end


@triton.jit
def _rows(base, position, inside, stride, column, width):
    """A tile (tokens, columns) of the rows at `position`, zero outside."""
    mask = inside[:, None] & (column < width)[None, :]
    return tl.load(base + position[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def _steps(base, position, inside, stride, bias, channel, D, SOFTPLUS: tl.constexpr):
    """Time steps (tokens, channels), zero outside the chunk, and what goes into the softplus."""
    raw = _rows(base, position, inside, stride, channel, D) + tl.load(bias + channel, mask=channel < D, other=0.0)
    step = raw
    if SOFTPLUS:
        e = tl.exp(raw)
        e_plus_1 = 1.0 + e
        log1p = tl.where(e_plus_1 == 1.0, e, tl.log(e_plus_1) * (e / (e_plus_1 - 1.0)))
        step = tl.where(raw > 20.0, raw, log1p)
    return tl.where(inside[:, None], step, 0.0), raw


@triton.jit
def _per_state(base, channel, state, D, N):
    """A tile (channels, states) and its mask."""
    mask = (channel < D)[:, None] & (state < N)[None, :]
    return base + channel[:, None] * N + state[None, :], mask


@triton.jit
def _chunk_maps(
    source, delta, bias, A, weight, order, gains, totals,
    delta_b, delta_k, delta_l, weight_b, weight_k, weight_l,
    L, D, N, K, period, patch_chunks,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Step 1: what a chunk adds to the state behind it (source u, weight B), and its summed time steps.

    REVERSE: what it adds to the gradient of the state before it (source grad_y, weight C).
    """
    chunk, bk = tl.program_id(0), tl.program_id(2).to(tl.int64)
    b, k = bk // K, bk % K
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    state = tl.arange(0, BLOCK_N)
    delta += b * delta_b + k * delta_k
    position, inside = _tokens(order, k, chunk, L, period, patch_chunks, 0, CHUNK)
    step, _ = _steps(delta, position, inside, delta_l, bias + k * D, channel, D, SOFTPLUS)
    value = _rows(source + b * L * D, position, inside, D, channel, D)
    if REVERSE:
        elapsed = tl.cumsum(step, 0)
    else:
        position_next, inside_next = _tokens(order, k, chunk, L, period, patch_chunks, 1, CHUNK)
        step_next, _ = _steps(delta, position_next, inside_next, delta_l, bias + k * D, channel, D, SOFTPLUS)
        elapsed = tl.cumsum(step_next, 0, reverse=True)
        value *= step

    A_at, mask = _per_state(A + k * D * N, channel, state, D, N)
    weights = _rows(weight + b * weight_b + k * weight_k, position, inside, weight_l, state, N)
    decay = tl.exp(elapsed[:, :, None] * tl.load(A_at, mask=mask, other=0.0)[None])  # (T, D, N)
    gain = tl.sum(decay * value[:, :, None] * weights[:, None, :], 0)
    row = bk * tl.num_programs(0) + chunk
    at, _ = _per_state(gains + row * D * N, channel, state, D, N)
    tl.store(at, gain, mask=mask)
    tl.store(totals + row * D + channel, tl.sum(step, 0), mask=channel < D)


@triton.jit
def _compose_chunks(
    gains, totals, A, decay, recap, initial, final, states, D, N, K, chunks, patch_chunks,
    RECAP: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Step 2: the state before every chunk and before its recap."""
    bk = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    offset, mask = _per_state(0, channel, tl.arange(0, BLOCK_N), D, N)
    A_tile = tl.load(A + bk % K * D * N + offset, mask=mask, other=0.0)
    h = tl.load(initial + bk * D * N + offset, mask=mask, other=0.0)
    if RECAP:
        recap_decay = tl.load(decay + bk * D * N + offset, mask=mask, other=0.0)
        recap_state = tl.load(recap + bk * D * N + offset, mask=mask, other=0.0)
    for chunk in tl.range(0, chunks, num_stages=4):  # loads run ahead of the recurrence
        row = bk * chunks + chunk
        gain = tl.load(gains + row * D * N + offset, mask=mask, other=0.0)
        tl.store(states + row * D * N + offset, h, mask=mask)
        if RECAP:
            if chunk % patch_chunks == 0:
                h = recap_decay * h + recap_state
        total = tl.load(totals + row * D + channel, mask=channel < D, other=0.0)
        h = tl.exp(total[:, None] * A_tile) * h + gain
    tl.store(final + bk * D * N + offset, h, mask=mask)


@triton.jit
def _compose_chunks_backward(
    gains, totals, A, decay, states, grad_final, grads, grad_decay, grad_recap, grad_initial,
    D, N, K, chunks, patch_chunks, RECAP: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Step 2 of the gradients: the gradient of the state behind every chunk, of the recap and of the initial state."""
    bk = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    offset, mask = _per_state(0, channel, tl.arange(0, BLOCK_N), D, N)
    A_tile = tl.load(A + bk % K * D * N + offset, mask=mask, other=0.0)
    g = tl.load(grad_final + bk * D * N + offset, mask=mask, other=0.0)
    if RECAP:
        recap_decay = tl.load(decay + bk * D * N + offset, mask=mask, other=0.0)
        grad_decay_sum = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
        grad_recap_sum = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    for i in tl.range(0, chunks, num_stages=4):
        chunk = chunks - 1 - i
        row = bk * chunks + chunk
        gain = tl.load(gains + row * D * N + offset, mask=mask, other=0.0)
        tl.store(grads + row * D * N + offset, g, mask=mask)
        total = tl.load(totals + row * D + channel, mask=channel < D, other=0.0)
        g = tl.exp(total[:, None] * A_tile) * g + gain
        if RECAP:
            if chunk % patch_chunks == 0:
                grad_decay_sum += g * tl.load(states + row * D * N + offset, mask=mask, other=0.0)
                grad_recap_sum += g
                g = recap_decay * g
    tl.store(grad_initial + bk * D * N + offset, g, mask=mask)
    if RECAP:
        tl.store(grad_decay + bk * D * N + offset, grad_decay_sum, mask=mask)
        tl.store(grad_recap + bk * D * N + offset, grad_recap_sum, mask=mask)


@triton.jit
def _scan_chunk(
    u, step, B, A, states, decay, recap, bk, chunk, row, patch_chunks, channel, state, D, N,
    RECAP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The states (T, D, N) after the chunk's tokens, from the saved state before it, and the tokens' gains."""
    at, mask = _per_state(states + row * D * N, channel, state, D, N)
    before = tl.load(at, mask=mask, other=0.0)
    if RECAP:
        if chunk % patch_chunks == 0:
            decay_at, _ = _per_state(decay + bk * D * N, channel, state, D, N)
            recap_at, _ = _per_state(recap + bk * D * N, channel, state, D, N)
            before = tl.load(decay_at, mask=mask, other=0.0) * before + tl.load(recap_at, mask=mask, other=0.0)
    keep = tl.exp(step[:, :, None] * A[None])
    gain = (step * u)[:, :, None] * B[:, None, :]
    is_first = (tl.arange(0, CHUNK) == 0)[:, None, None]
    _, h = tl.associative_scan((keep, gain + tl.where(is_first, keep * before[None], 0.0)), 0, _compose)
    return h, gain


@triton.jit
def _outputs(
    u, delta, bias, A, B, C, order, states, decay, recap, y,
    delta_b, delta_k, delta_l, B_b, B_k, B_l, C_b, C_k, C_l,
    L, D, N, K, period, patch_chunks,
    SOFTPLUS: tl.constexpr, RECAP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Step 3: the outputs of one chunk, one direction and one block of channels."""
    chunk, bk = tl.program_id(0), tl.program_id(2).to(tl.int64)
    b, k = bk // K, bk % K
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    state = tl.arange(0, BLOCK_N)
    position, inside = _tokens(order, k, chunk, L, period, patch_chunks, 0, CHUNK)
    step, _ = _steps(delta + b * delta_b + k * delta_k, position, inside, delta_l, bias + k * D, channel, D, SOFTPLUS)
    u_tile = _rows(u + b * L * D, position, inside, D, channel, D)
    B_tile = _rows(B + b * B_b + k * B_k, position, inside, B_l, state, N)
    C_tile = _rows(C + b * C_b + k * C_k, position, inside, C_l, state, N)
    A_at, mask = _per_state(A + k * D * N, channel, state, D, N)
    h, _ = _scan_chunk(
        u_tile, step, B_tile, tl.load(A_at, mask=mask, other=0.0), states, decay, recap,
        bk, chunk, bk * tl.num_programs(0) + chunk, patch_chunks, channel, state, D, N, RECAP, CHUNK,
    )  # fmt: skip
    at = y + bk * L * D + position[:, None] * D + channel[None, :]
    tl.store(at, tl.sum(h * C_tile[:, None, :], 2), mask=inside[:, None] & (channel < D)[None, :])


@triton.jit
def _gradients(
    grad_y, u, delta, bias, A, B, C, order, states, decay, recap, grads, du, ddelta, dA, dB, dC,
    delta_b, delta_k, delta_l, B_b, B_k, B_l, C_b, C_k, C_l,
    L, D, N, K, period, patch_chunks,
    SOFTPLUS: tl.constexpr, RECAP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Step 3 of the gradients of one chunk and direction; dA (B, K, S, D, N) is still to be summed over chunks.

    One program takes all channels, block after block, because dB and dC are sums over channels.
    """
    chunk, bk = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = bk * tl.num_programs(0) + chunk
    b, k = bk // K, bk % K
    state = tl.arange(0, BLOCK_N)
    delta += b * delta_b + k * delta_k
    position, inside = _tokens(order, k, chunk, L, period, patch_chunks, 0, CHUNK)
    position_next, inside_next = _tokens(order, k, chunk, L, period, patch_chunks, 1, CHUNK)
    B_tile = _rows(B + b * B_b + k * B_k, position, inside, B_l, state, N)
    C_tile = _rows(C + b * C_b + k * C_k, position, inside, C_l, state, N)
    is_last = (tl.arange(0, CHUNK) == CHUNK - 1)[:, None, None]
    dB_tile = tl.zeros([CHUNK, BLOCK_D, BLOCK_N], tl.float32)  # channels are summed once, after the loop
    dC_tile = tl.zeros([CHUNK, BLOCK_D, BLOCK_N], tl.float32)
    for start in range(0, D, BLOCK_D):
        channel = start + tl.arange(0, BLOCK_D)
        step, raw = _steps(delta, position, inside, delta_l, bias + k * D, channel, D, SOFTPLUS)
        step_next, _ = _steps(delta, position_next, inside_next, delta_l, bias + k * D, channel, D, SOFTPLUS)
        u_tile = _rows(u + b * L * D, position, inside, D, channel, D)
        grad_tile = _rows(grad_y + b * L * D, position, inside, D, channel, D)
        A_at, mask = _per_state(A + k * D * N, channel, state, D, N)
        A_tile = tl.load(A_at, mask=mask, other=0.0)
        h, gain = _scan_chunk(
            u_tile, step, B_tile, A_tile, states, decay, recap,
            bk, chunk, row, patch_chunks, channel, state, D, N, RECAP, CHUNK,
        )  # fmt: skip
        dC_tile += h * grad_tile[:, :, None]
        carried = h - gain  # exp(dt * A) * the state before the token
        behind_at, _ = _per_state(grads + row * D * N, channel, state, D, N)
        behind = tl.load(behind_at, mask=mask, other=0.0)
        keep_next = tl.exp(step_next[:, :, None] * A_tile[None])
        direct = grad_tile[:, :, None] * C_tile[:, None, :] + tl.where(is_last, behind[None], 0.0)
        _, g = tl.associative_scan((_reverse(keep_next), _reverse(direct)), 0, _compose)
        g = _reverse(g)  # gradient of h

        dB_tile += g * (step * u_tile)[:, :, None]
        dA_at, _ = _per_state(dA + row * D * N, channel, state, D, N)
        tl.store(dA_at, tl.sum(g * carried * step[:, :, None], 0), mask=mask)
        g_B = tl.sum(g * B_tile[:, None, :], 2)
        dstep = tl.sum(g * carried * A_tile[None], 2) + u_tile * g_B
        if SOFTPLUS:
            dstep = tl.where(raw > 20.0, dstep, dstep * tl.sigmoid(raw))
        at = bk * L * D + position[:, None] * D + channel[None, :]
        written = inside[:, None] & (channel < D)[None, :]
        tl.store(du + at, step * g_B, mask=written)
        tl.store(ddelta + at, dstep, mask=written)
    at = bk * L * N + position[:, None] * N + state[None, :]
    written = inside[:, None] & (state < N)[None, :]
    tl.store(dB + at, tl.sum(dB_tile, 1), mask=written)
    tl.store(dC + at, tl.sum(dC_tile, 1), mask=written)


class _Scan:
    """One scan's inputs as the kernels take them, how it is cut up, and step 1 of both passes."""

    def __init__(self, inputs: ScanInputs) -> None:
        if inputs.u.device.type == "cpu" and isinstance(_outputs, triton.JITFunction):
            raise BackendError("scan backend 'triton' needs tensors on a GPU: on a CPU use cpu or auto")
        A, decay = inputs.A, inputs.decay
        self.u, self.A, self.order = inputs.u.contiguous(), A.contiguous(), inputs.order.contiguous()
        self.delta, self.B, self.C = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (inputs.delta, inputs.B, inputs.C)
        )
        self.bias = A.new_zeros(A.shape[:2]) if inputs.delta_bias is None else inputs.delta_bias.contiguous()
        self.decay, self.recap_state = (self.A if x is None else x.contiguous() for x in (decay, inputs.recap_state))
        batch, directions, length, channels = inputs.delta.shape
        states = A.shape[-1]
        patch = inputs.period or length
        chunk, patch_chunks, self.chunks = _cut(length, patch, states)
        block_n = triton.next_power_of_2(states)
        block_d = min(max(1, TILE // block_n), triton.next_power_of_2(channels))
        self.blocks, self.sequences = triton.cdiv(channels, block_d), batch * directions
        self.states_shape = (batch, directions, self.chunks, channels, states)
        self.state_shape = (batch, directions, channels, states)
        tile = {"BLOCK_D": block_d, "BLOCK_N": block_n, "num_warps": WARPS}
        self.sizes = (length, channels, states, directions, patch, patch_chunks)
        self.options = {"SOFTPLUS": inputs.delta_softplus, "CHUNK": chunk, **tile}
        self.compose_sizes = (channels, states, directions, self.chunks, patch_chunks)
        self.compose_options = {"RECAP": decay is not None, **tile}
        self.strides = (*self.delta.stride()[:3], *self.B.stride()[:3], *self.C.stride()[:3])

    def chunk_maps(self, source: Tensor, weight: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """Step 1: gains (B, K, S, D, N) and summed time steps (B, K, S, D) of the S chunks."""
        gains, totals = source.new_empty(self.states_shape), source.new_empty(self.states_shape[:-1])
        _chunk_maps[(self.chunks, self.blocks, self.sequences)](
            source, self.delta, self.bias, self.A, weight, self.order, gains, totals,
            *self.strides[:3], *weight.stride()[:3], *self.sizes, REVERSE=reverse, **self.options,
        )  # fmt: skip
        return gains, totals


def chunk_limit(states: int) -> int:
    """The most tokens of a chunk for which registers suffice."""
    return MAX_CHUNK if 4 <= triton.next_power_of_2(states) <= 16 else MAX_CHUNK // 2


def _cut(length: int, patch: int, states: int) -> tuple[int, int, int]:
    chunk = max(2, min(chunk_limit(states), triton.next_power_of_2(min(patch, length))))  # tokens
    patch_chunks = triton.cdiv(patch, chunk)
    return chunk, patch_chunks, length // patch * patch_chunks + triton.cdiv(length % patch, chunk)


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape (B, K, S, D, N) of what `forward` saves for `backward`."""
    batch, directions, length, _ = inputs.delta.shape
    return batch, directions, _cut(length, inputs.period or length, inputs.A.shape[-1])[2], *inputs.A.shape[1:]


def forward(inputs: ScanInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Scan float32 tensors as `selective_scan` does.

    Returns the outputs (B, L, D), the final states (B, K, D, N) and, for `backward`, the states before every chunk
    (B, K, S, D, N). Raises BackendError for tensors on a CPU outside Triton's interpreter.
    """
    s, u, skip = _Scan(inputs), inputs.u, inputs.skip
    initial = u.new_zeros(s.state_shape) if inputs.initial_state is None else inputs.initial_state.contiguous()
    final = torch.empty_like(initial)
    outputs = u.new_empty(inputs.delta.shape)  # (B, K, L, D)
    with torch.cuda.device_of(u):
        gains, totals = s.chunk_maps(s.u, s.B, reverse=False)
        states = torch.empty_like(gains)
        _compose_chunks[(s.blocks, s.sequences)](
            gains, totals, s.A, s.decay, s.recap_state, initial, final, states, *s.compose_sizes, **s.compose_options
        )
        _outputs[(s.chunks, s.blocks, s.sequences)](
            s.u, s.delta, s.bias, s.A, s.B, s.C, s.order, states, s.decay, s.recap_state, outputs,
            *s.strides, *s.sizes, RECAP=inputs.decay is not None, **s.options,
        )  # fmt: skip
    y = outputs.sum(1)
    return (y if skip is None else y + u * skip.sum(0)), final, states


def backward(grad_y: Tensor, grad_final: Tensor, saved: Tensor, inputs: ScanInputs) -> dict[str, Tensor]:
    """Gradients of the tensors among the inputs, by name, from those of both outputs and what `forward` saved."""
    s, u, skip = _Scan(inputs), inputs.u, inputs.skip
    grad_y, grad_final = grad_y.contiguous(), grad_final.contiguous()
    grad_initial, grad_decay, grad_recap = (torch.empty_like(grad_final) for _ in range(3))
    du, ddelta, dB, dC = (u.new_empty(x.shape) for x in (inputs.delta, inputs.delta, inputs.B, inputs.C))
    with torch.cuda.device_of(u):
        gains, totals = s.chunk_maps(grad_y, s.C, reverse=True)
        grads, dA = torch.empty_like(gains), gains  # the gains' memory serves again
        _compose_chunks_backward[(s.blocks, s.sequences)](
            gains, totals, s.A, s.decay, saved, grad_final, grads, grad_decay, grad_recap, grad_initial,
            *s.compose_sizes, **s.compose_options,
        )  # fmt: skip
        _gradients[(s.chunks, s.sequences)](
            grad_y, s.u, s.delta, s.bias, s.A, s.B, s.C, s.order, saved, s.decay, s.recap_state, grads,
            du, ddelta, dA, dB, dC, *s.strides, *s.sizes, RECAP=inputs.decay is not None, **s.options,
        )  # fmt: skip
    gradients = {"u": du.sum(1), "delta": ddelta, "A": dA.sum((0, 2)), "B": dB, "C": dC, "initial_state": grad_initial}
    gradients |= {"decay": grad_decay, "recap_state": grad_recap, "delta_bias": ddelta.sum((0, 2))}
    if skip is not None:
        gradients["u"] += grad_y * skip.sum(0)
        gradients["skip"] = (grad_y * u).sum((0, 1)).repeat(len(skip), 1)  # every direction visits every token once
    return {name: gradients[name] for name in inputs.differentiable()}

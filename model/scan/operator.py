"""One operator for every scan of the network: tokens in image order, directions as index arrays."""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.scan.mamba_ssm import is_available, selective_scan_mamba_ssm
from model.scan.reference import GRADIENTS, selective_scan_reference

DIFFERENTIABLE = {"reference": selective_scan_reference, "mamba_ssm": selective_scan_mamba_ssm}
KERNELS = ("cpu", "triton")  # modules with forward, backward and saved_shape
CUDA_BACKEND = "mamba_ssm" if is_available() else "triton"


class Recap(NamedTuple):
    """An affine map of the state, h <- decay * h + state, applied before every token t with t % period == 0."""

    decay: Tensor  # (B, K, D, N)
    state: Tensor  # (B, K, D, N)
    period: int  # tokens


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    order: Tensor,
    *,
    skip: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    recap: Recap | None = None,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan an image's tokens in K directions: outputs (B, L, D) summed in image order, final states (B, K, D, N).

    Token t of direction k is at image position p = order[k, t]; with dt = delta[:, k, p] (+ delta_bias[k], softplus)
    `h = exp(dt A) h + dt u[:, p] B[:, k, p]`, `y[:, p] += C[:, k, p] h + skip[k] u[:, p]`.

    Args: u (B, L, D), shared by all directions; delta (B, K, L, D); A (K, D, N); B, C (B, K, L, N); order (K, L) int64,
    every row a permutation; skip, delta_bias (K, D); initial_state (B, K, D, N), else zero; backend "auto" (by device
    and dtype), "reference", "cpu", "triton" or "mamba_ssm". Rows in the last dimension should be contiguous; other
    strides cost nothing. Computes in float32 (float64 for float64 u, by the reference) whatever autocast says; y has
    u's dtype. Differentiable in every floating argument through both outputs, once unless the backend is "reference".
    Raises ValueError for a wrong shape or backend.

    Source: paper, section 3.2; the recap is section 4.3's support in front of every patch as one affine map.
    """
    _check(u, delta, A, B, C, order, skip, delta_bias, recap, initial_state)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    if backend == "auto":
        backend = _auto(u.device.type, dtype)
    if backend not in (*DIFFERENTIABLE, *KERNELS):
        raise ValueError(f"scan backend {backend!r}: must be auto, reference, cpu, triton or mamba_ssm")
    if dtype == torch.float64 and backend != "reference":
        raise ValueError(f"scan backend {backend!r} computes in float32: float64 needs the reference")

    def cast(x: Tensor | None) -> Any:
        return None if x is None else x.to(dtype)

    decay, recap_state, period = recap if recap is not None else (None, None, 0)
    arguments = (
        *map(cast, (u, delta, A, B, C)), order, cast(skip), cast(delta_bias), delta_softplus,
        cast(decay), cast(recap_state), period, cast(initial_state),
    )  # fmt: skip
    with torch.autocast(u.device.type, enabled=False):
        if backend in DIFFERENTIABLE:
            y, state = DIFFERENTIABLE[backend](*arguments)
        else:
            y, state, _ = _scan(*arguments, backend)
    return y.to(u.dtype), state


def _auto(device: str, dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return "reference"
    return {"cpu": "cpu", "cuda": CUDA_BACKEND}.get(device, "reference")


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    order: Tensor,
    skip: Tensor | None,
    delta_bias: Tensor | None,
    recap: Recap | None,
    initial_state: Tensor | None,
) -> None:
    """Kernels read memory by these shapes."""
    if u.dim() != 3 or delta.dim() != 4 or A.dim() != 3:
        raise ValueError(f"u, delta and A must have 3, 4 and 3 dimensions, not {u.dim()}, {delta.dim()} and {A.dim()}")
    (batch, length, channels), directions, states = u.shape, delta.shape[1], A.shape[2]
    state = (batch, directions, channels, states)
    expected = {
        "delta": (delta, (batch, directions, length, channels)),
        "A": (A, (directions, channels, states)),
        "B": (B, (batch, directions, length, states)),
        "C": (C, (batch, directions, length, states)),
        "order": (order, (directions, length)),
        "skip": (skip, (directions, channels)),
        "delta_bias": (delta_bias, (directions, channels)),
        "recap.decay": (recap and recap.decay, state),
        "recap.state": (recap and recap.state, state),
        "initial_state": (initial_state, state),
    }
    for name, (x, shape) in expected.items():
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {tuple(x.shape)}")
    if recap is not None and recap.period < 1:
        raise ValueError(f"recap.period must be at least 1, not {recap.period}")
    if order.dtype != torch.int64:
        raise ValueError(f"order must be int64, not {order.dtype}")


def _kernels(backend: str) -> ModuleType:
    return importlib.import_module(f"model.scan.{backend}")  # Triton exists on some platforms only


@torch.library.custom_op("hmnet::selective_scan", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor, skip: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, decay: Tensor | None, recap_state: Tensor | None, period: int,
    initial_state: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _kernels(backend).forward(
        u, delta, A, B, C, order, skip, delta_bias, delta_softplus, decay, recap_state, period, initial_state
    )


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, directions, _, channels = delta.shape
    state = u.new_empty(batch, directions, channels, A.shape[-1])
    saved = u.new_empty(_kernels(arguments[-1]).saved_shape(delta, A, arguments[-3]))
    return u.new_empty(u.shape), state, saved


@torch.library.custom_op("hmnet::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor, grad_state: Tensor, saved: Tensor,
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor, skip: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, decay: Tensor | None, recap_state: Tensor | None, period: int,
    initial_state: Tensor | None, backend: str,
) -> list[Tensor]:  # fmt: skip
    gradients = _kernels(backend).backward(
        grad_y, grad_state, u, delta, A, B, C, order, skip, delta_bias, delta_softplus, decay, recap_state, period,
        initial_state, saved,
    )  # fmt: skip
    return [u.new_empty(0) if x is None else x for x in gradients]


@_scan_backward.register_fake
def _(grad_y: Tensor, grad_state: Tensor, saved: Tensor, *arguments: Any) -> list[Tensor]:
    return [grad_y.new_empty(0 if arguments[i] is None else arguments[i].shape) for i in GRADIENTS]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors = [x if isinstance(x, Tensor) else None for x in inputs]
    ctx.save_for_backward(*tensors, output[2])
    ctx.settings = [None if isinstance(x, Tensor) else x for x in inputs]


def _differentiate(ctx: Any, grad_y: Tensor, grad_state: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    arguments = [setting if x is None else x for x, setting in zip(tensors, ctx.settings, strict=True)]
    gradients: list[Tensor | None] = [None] * len(arguments)
    for i, gradient in zip(GRADIENTS, _scan_backward(grad_y, grad_state, saved, *arguments), strict=True):
        gradients[i] = None if arguments[i] is None else gradient
    return tuple(gradients)


def _refuse(ctx: Any, *_: Any) -> None:
    raise NotImplementedError("selective_scan has no second derivative; backend='reference' has one")


_scan.register_autograd(_differentiate, setup_context=_save_for_backward)
_scan_backward.register_autograd(_refuse)
for _device in ("cpu", "cuda"):
    _scan.register_autocast(_device, torch.float32)

"""One operator for every scan: tokens in image order, directions as index arrays."""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .inputs import BackendError, ScanInputs
from .mamba_ssm import is_available, selective_scan_mamba_ssm
from .reference import selective_scan_reference

DIFFERENTIABLE = {"reference": selective_scan_reference, "mamba_ssm": selective_scan_mamba_ssm}
KERNELS = ("cpu", "triton")  # modules with forward, backward and saved_shape
CUDA_BACKEND = "mamba_ssm" if is_available() else "triton"
SCHEMA_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", int: "int"}
SCHEMA = (
    ", ".join(f"{SCHEMA_TYPES[kind]} {name}" for name, kind in ScanInputs.__annotations__.items()) + ", str backend"
)


class Recap(NamedTuple):
    """An affine map of the state, h <- decay * h + state, applied before every token t with t % period == 0."""

    decay: Tensor | None  # (B, K, D, N); None: zero, the state is replaced
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
    delta_proj: Tensor | None = None,
    delta_softplus: bool = False,
    recap: Recap | None = None,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan an image's tokens in K directions: outputs (B, L, D) summed in image order, final states (B, K, D, N).

    Token t of direction k is at image position p = order[k, t]; with dt = delta[:, k, p] (+ delta_bias[k], softplus)
    `h = exp(dt A) h + dt u[:, p] B[:, k, p]`, `y[:, p] += C[:, k, p] h + skip[k] u[:, p]`.

    Args: u (B, L, D), shared by all directions; delta (B, K, L, D); A (K, D, N); B, C (B, K, L, N); order (K, L) int64,
    every row a permutation; skip, delta_bias (K, D); delta_proj (K, D, R), with which delta is (B, K, L, R) and is
    multiplied by it first; initial_state (B, K, D, N), else zero; backend "auto" (by device
    and dtype), "reference", "cpu", "triton" or "mamba_ssm". Rows in the last dimension should be contiguous; other
    strides cost nothing. Computes in float32 (float64 for float64 u, by the reference) whatever autocast says; y has
    u's dtype. Differentiable in every floating argument through both outputs, once unless the backend is "reference".
    Raises ValueError for a wrong shape or backend, BackendError for a backend that cannot run here.

    Source: Mamba (arXiv 2312.00752), algorithm 2; the recap is a sequence in front of every `period` tokens as one
    affine map (HMNet, arXiv 2409.19613, section 4.3).
    """
    decay, recap_state, period = recap or (None, None, 0)
    inputs = ScanInputs(
        u, delta, A, B, C, order, skip, delta_bias, delta_proj, delta_softplus, decay, recap_state, period,
        initial_state,
    )  # fmt: skip
    inputs.check()
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    if backend == "auto":
        backend = _auto(u.device.type, dtype)
    if backend not in (*DIFFERENTIABLE, *KERNELS):
        raise ValueError(f"scan backend {backend!r}: must be auto, reference, cpu, triton or mamba_ssm")
    if dtype == torch.float64 and backend != "reference":
        raise ValueError(f"scan backend {backend!r} computes in float32: float64 needs the reference")
    inputs = inputs.to(dtype)
    if recap_state is not None and decay is None and backend != "mamba_ssm":
        inputs = inputs._replace(decay=torch.zeros_like(recap_state, dtype=dtype))
    if backend != "cpu":  # whose kernel multiplies token by token
        inputs = inputs.projected()
    with torch.autocast(u.device.type, enabled=False):
        if backend in DIFFERENTIABLE:
            y, state = DIFFERENTIABLE[backend](inputs)
        else:
            y, state, _ = _scan(*inputs, backend)
    return y.to(u.dtype), state


def _auto(device: str, dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return "reference"
    return {"cpu": "cpu", "cuda": CUDA_BACKEND}.get(device, "reference")


def _kernels(backend: str) -> ModuleType:
    try:
        return importlib.import_module(f".{backend}", __package__)
    except ImportError as error:  # Triton exists on some platforms only
        raise BackendError(f"scan backend {backend!r}: {error}; use auto or reference") from error


@torch.library.custom_op(
    "selective_scan::forward", mutates_args=(), schema=f"({SCHEMA}) -> (Tensor y, Tensor state, Tensor saved)"
)
def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, backend = arguments
    return _kernels(backend).forward(ScanInputs(*inputs))


@_scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, backend = ScanInputs(*arguments[:-1]), arguments[-1]
    u = inputs.u
    state = u.new_empty(len(u), *inputs.A.shape)
    return u.new_empty(u.shape), state, u.new_empty(_kernels(backend).saved_shape(inputs))


@torch.library.custom_op(
    "selective_scan::backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor grad_state, Tensor saved, {SCHEMA}) -> Tensor[]",
)
def _scan_backward(grad_y: Tensor, grad_state: Tensor, saved: Tensor, *arguments: Any) -> list[Tensor]:
    inputs, backend = ScanInputs(*arguments[:-1]), arguments[-1]
    gradients = _kernels(backend).backward(grad_y, grad_state, saved, inputs)
    return [gradients[name] for name in inputs.differentiable()]


@_scan_backward.register_fake
def _(grad_y: Tensor, grad_state: Tensor, saved: Tensor, *arguments: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in ScanInputs(*arguments[:-1]).differentiable().values()]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs), output[2])
    ctx.settings = [None if isinstance(x, Tensor) else x for x in inputs]


def _differentiate(ctx: Any, grad_y: Tensor, grad_state: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    arguments = [setting if x is None else x for x, setting in zip(tensors, ctx.settings, strict=True)]
    names = ScanInputs(*arguments[:-1]).differentiable()
    gradients = dict(zip(names, _scan_backward(grad_y, grad_state, saved, *arguments), strict=True))
    return (*(gradients.get(name) for name in ScanInputs._fields), None)


def _refuse(ctx: Any, *_: Any) -> None:
    raise NotImplementedError("selective_scan has no second derivative; backend='reference' has one")


_scan.register_autograd(_differentiate, setup_context=_save_for_backward)
_scan_backward.register_autograd(_refuse)
for _device in ("cpu", "cuda"):
    _scan.register_autocast(_device, torch.float32)

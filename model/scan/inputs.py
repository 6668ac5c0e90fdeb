"""What a selective scan is given, under the same names for every backend."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class BackendError(RuntimeError):
    """A scan backend that cannot run here: the message says why and what to use instead, in one line."""


class ScanInputs(NamedTuple):
    """One scan of K directions over B images of L tokens, D channels and N states; see `selective_scan`."""

    u: Tensor  # (B, L, D)
    delta: Tensor  # (B, K, L, D), or (B, K, L, R) of low rank
    A: Tensor  # (K, D, N)
    B: Tensor  # (B, K, L, N)
    C: Tensor  # (B, K, L, N)
    order: Tensor  # (K, L), int64
    skip: Tensor | None = None  # (K, D)
    delta_bias: Tensor | None = None  # (K, D)
    delta_proj: Tensor | None = None  # (K, D, R), takes a delta of low rank to all channels
    delta_softplus: bool = False
    decay: Tensor | None = None  # (B, K, D, N), zero without
    recap_state: Tensor | None = None  # (B, K, D, N)
    period: int = 0  # tokens between two recaps, 0 without
    initial_state: Tensor | None = None  # (B, K, D, N)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are present, by name."""
        return {name: x for name, x in self._asdict().items() if isinstance(x, Tensor)}

    def differentiable(self) -> dict[str, Tensor]:
        """Those of them that have gradients."""
        return {name: x for name, x in self.tensors().items() if x.is_floating_point()}

    def to(self, dtype: torch.dtype) -> "ScanInputs":
        """The same with floating tensors of this dtype."""
        converted: dict[str, Any] = {name: x.to(dtype) for name, x in self.differentiable().items()}
        return self._replace(**converted)

    def projected(self) -> "ScanInputs":
        """The same with delta (B, K, L, D)."""
        if self.delta_proj is None:
            return self
        return self._replace(delta=self.delta @ self.delta_proj.transpose(1, 2), delta_proj=None)

    def time_steps(self) -> Tensor:
        """The time steps (B, K, L, D), after projection, bias and softplus."""
        delta = self.projected().delta
        delta = delta if self.delta_bias is None else delta + self.delta_bias[:, None]
        return F.softplus(delta) if self.delta_softplus else delta

    def check(self) -> None:
        """Raise ValueError for shapes and dtypes by which a kernel would read foreign memory."""
        u, delta, A = self.u, self.delta, self.A
        if u.dim() != 3 or delta.dim() != 4 or A.dim() != 3:
            raise ValueError(
                f"u, delta and A must have 3, 4 and 3 dimensions, not {u.dim()}, {delta.dim()} and {A.dim()}"
            )
        (batch, length, channels), directions, states = u.shape, delta.shape[1], A.shape[2]
        per_token, per_channel = (batch, directions, length, states), (directions, channels)
        state = (batch, directions, channels, states)
        expected: dict[str, tuple[int, ...]] = {
            "u": (batch, length, channels),
            "delta": (batch, directions, length, channels if self.delta_proj is None else delta.shape[3]),
            "A": (directions, channels, states),
            "order": (directions, length),
            "delta_proj": (directions, channels, delta.shape[3]),
            **dict.fromkeys(("B", "C"), per_token),
            **dict.fromkeys(("skip", "delta_bias"), per_channel),
            **dict.fromkeys(("decay", "recap_state", "initial_state"), state),
        }
        for name, x in self.tensors().items():
            if tuple(x.shape) != expected[name]:
                raise ValueError(f"{name} must have the shape {expected[name]}, not {tuple(x.shape)}")
        if self.recap_state is not None and self.period < 1:
            raise ValueError(f"recap.period must be at least 1, not {self.period}")
        if self.order.dtype != torch.int64:
            raise ValueError(f"order must be int64, not {self.order.dtype}")

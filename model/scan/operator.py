"""One operator for every scan of the network: tokens in image order, directions as index arrays."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.scan.reference import selective_scan_reference


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
    """Scan the tokens u (B, L, D) in K directions and return the summed output (B, L, D) and the final states (B, K, D, N)."""
    decay, recap_state, period = recap if recap is not None else (None, None, 0)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32

    def cast(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype)

    with torch.autocast(u.device.type, enabled=False):
        y, state = selective_scan_reference(
            u.to(dtype), delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype), order,
            cast(skip), cast(delta_bias), delta_softplus, cast(decay), cast(recap_state), period, cast(initial_state),
        )  # fmt: skip
    return y.to(u.dtype), state

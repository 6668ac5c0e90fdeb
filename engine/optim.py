"""How a network computes in a run; the optimisers are those of `model.optim`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.cpu import fast_products
from model.optim import make_sgd, make_trunk_adamw, poly_rate, set_rates

__all__ = ["amp_dtype", "autocast", "make_sgd", "make_trunk_adamw", "poly_rate", "set_rates"]


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of the config key `amp`: None for off; auto is fp16 on a GPU, and off on a CPU.

    What was trained in fp16 scores otherwise in bf16, the only half precision that is fast on CPUs.
    """
    if amp == "auto":
        amp = "fp16" if device.type == "cuda" else "off"
    return {"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}[amp]


@contextmanager
def autocast(amp: str, device: torch.device) -> Iterator[None]:
    """The context in which a network computes: the precision that the config key `amp` says, the fastest products."""
    dtype = amp_dtype(amp, device)
    with torch.autocast(device.type, dtype, enabled=dtype is not None), fast_products(device):
        yield

"""Optimisers of a run, and how a network computes in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.cpu import fast_products
from model.methods.method import Method
from model.optim import ScheduledOptimizer, make_sgd, make_trunk_adamw, poly_rate, set_rates
from util.config import Config

__all__ = ["amp_dtype", "autocast", "make_sgd", "make_trunk_adamw", "method_optimizers", "poly_rate", "set_rates"]


def method_optimizers(method: Method, cfg: Config) -> dict[str, ScheduledOptimizer]:
    """A method's optimisers by name; ValueError for a parameter that learns but is in none of them."""
    schedules = method.optimizers(cfg)
    groups = [group for schedule in schedules.values() for group in schedule.optimizer.param_groups]
    covered = {id(parameter) for group in groups for parameter in group["params"]}
    if idle := [name for name, p in method.named_parameters() if p.requires_grad and id(p) not in covered]:
        raise ValueError(f"no optimiser of {type(method).__name__} trains {', '.join(idle)}")
    return schedules


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

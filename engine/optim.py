"""The optimisers of both stages and their schedule."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

NEW_LAYER_FACTOR = 10.0  # how many times faster newly initialised parameter groups learn


def make_sgd(groups: Sequence[Iterable[Parameter]], momentum: float, weight_decay: float) -> SGD:
    """SGD over parameter groups in the given order; its rates are set before every step by `set_rates`."""
    return SGD([{"params": list(group)} for group in groups], lr=0.0, momentum=momentum, weight_decay=weight_decay)


def make_trunk_adamw(trunk: nn.Module, rate: float, batch_size: int, weight_decay: float) -> AdamW:
    """AdamW with the constant rate times half of the process's batch, and no decay for names with `norm` in them.

    A batch of one, for which the released rule gives a rate of zero, learns with `rate` itself.
    """
    named = list(trunk.named_parameters())
    groups = [
        {"params": [p for name, p in named if "norm" not in name], "weight_decay": weight_decay},
        {"params": [p for name, p in named if "norm" in name], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=rate * max(batch_size // 2, 1))


def poly_rate(base: float, step: int, steps: int, power: float) -> float:
    """The rate of step 0, 1, ... steps - 1 of the whole run: base * (1 - (step + 1) / steps)^power, 0 for the last.

    The released code counts the step before it takes the rate.
    """
    return base * (1 - (step + 1) / steps) ** power


def set_rates(optimizer: Optimizer, rate: float, index_split: int) -> None:
    """The rate for the groups up to `index_split`, ten times the rate for those above it (-1: all)."""
    for index, group in enumerate(optimizer.param_groups):
        group["lr"] = rate * NEW_LAYER_FACTOR if index > index_split else rate


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of the config key `amp`: None for off; auto is fp16 on a GPU, and off on a CPU.

    What was trained in fp16 scores otherwise in bf16, the only half precision that is fast on CPUs.
    """
    if amp == "auto":
        amp = "fp16" if device.type == "cuda" else "off"
    return {"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}[amp]


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """The context in which a network computes as the config key `amp` says."""
    dtype = amp_dtype(amp, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)

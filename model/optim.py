"""Optimisers of the methods and the rates that they learn with."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

NEW_LAYER_FACTOR = 10.0  # how many times faster newly initialised parameter groups learn


class ScheduledOptimizer(NamedTuple):
    """An optimiser and its rates: constant as it was made, or falling as `poly_rate` says where `rate` is given."""

    optimizer: Optimizer
    rate: float | None = None
    power: float = 0.9
    index_split: int = -1  # the groups above it learn NEW_LAYER_FACTOR times as fast

    def set_rates(self, step: int, steps: int) -> float:
        """Set the rates of step 0, 1, ... steps - 1 of the whole run; returns the rate before NEW_LAYER_FACTOR."""
        if self.rate is None:
            return self.optimizer.param_groups[0]["lr"]
        rate = poly_rate(self.rate, step, steps, self.power)
        set_rates(self.optimizer, rate, self.index_split)
        return rate


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

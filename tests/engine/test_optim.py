import random

import pytest
import torch
from torch import nn

from engine.optim import amp_dtype, autocast, make_sgd, make_trunk_adamw, poly_rate, set_rates


def named_trunk() -> nn.ModuleDict:
    """Norms under the names that they have in the trunk; the first two decay."""
    return nn.ModuleDict({name: nn.LayerNorm(2) for name in ("ln_1", "ln_2", "out_norm", "norm")})


def test_only_norms_by_name_do_not_decay() -> None:
    trunk = named_trunk()
    optimizer = make_trunk_adamw(trunk, rate=6e-5, batch_size=4, weight_decay=0.01)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trunk.named_parameters():
        assert decay[parameter] == (0.0 if name.split(".")[0] in ("out_norm", "norm") else 0.01)
    assert len(decay) == 8


@pytest.mark.parametrize(("batch", "times"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4)])
def test_trunk_rate_follows_the_batch(batch: int, times: int) -> None:
    optimizer = make_trunk_adamw(named_trunk(), rate=6e-5, batch_size=batch, weight_decay=0.01)
    assert {group["lr"] for group in optimizer.param_groups} == {6e-5 * times}


def test_rates_of_the_groups() -> None:
    groups = [[nn.Parameter(torch.zeros(1))] for _ in range(4)]
    optimizer = make_sgd(groups, momentum=0.8, weight_decay=1e-3)
    assert [group["params"] for group in optimizer.param_groups] == groups
    for split in (-1, 0, 2, 9):
        rate = random.random()
        set_rates(optimizer, rate, split)
        expected = [rate if index <= split else 10 * rate for index in range(4)]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
        assert all(group["momentum"] == 0.8 and group["weight_decay"] == 1e-3 for group in optimizer.param_groups)


def test_the_schedule_is_that_of_pytorch_one_step_ahead() -> None:
    steps, power, base = random.randint(5, 50), random.uniform(0.5, 2), random.random()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    oracle = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power)
    for step in range(steps):
        optimizer.step()
        oracle.step()
        assert poly_rate(base, step, steps, power) == pytest.approx(oracle.get_last_lr()[0], rel=1e-6, abs=1e-12)
    assert poly_rate(base, steps - 1, steps, power) == 0


def test_autocast_types() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [amp_dtype(amp, cpu) for amp in ("off", "fp16", "bf16", "auto")] == [
        *(None, torch.float16, torch.bfloat16, None)
    ]
    assert amp_dtype("auto", gpu) == torch.float16
    with autocast("auto", cpu):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bf16", cpu):
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16

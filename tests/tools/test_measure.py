"""Counting against hand computation, timing and memory against what was arranged."""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.parts.fusion import attend
from model.parts.mamba import SelectiveScan
from model.parts.order import plain_orders
from tools.measure import count_flops, in_fresh_process, machine, parameter_count, peak_memory, product_peak, timed
from util.errors import UserError


def test_flops_of_products_and_convolutions() -> None:
    linear, conv = nn.Linear(5, 7, bias=False), nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    assert count_flops(lambda: linear(torch.randn(3, 5))) == 2 * 3 * 5 * 7
    assert count_flops(lambda: conv(torch.randn(1, 4, 8, 8))) == 2 * 8 * 8 * 6 * (4 // 2) * 9
    assert count_flops(lambda: torch.randn(5).exp()) == 0


def test_flops_of_a_scan() -> None:
    """The two projections, and seven operations for each state, token and direction."""
    inner, states, rank, tokens = 8, 3, 2, 16
    scan = SelectiveScan(inner, states, rank, "cpu")
    u = torch.randn(1, tokens, inner)
    expected = 2 * tokens * inner * 4 * (rank + 2 * states)  # x_proj
    expected += 2 * 4 * tokens * rank * inner  # dt_proj
    expected += 7 * 4 * tokens * inner * states

    def run() -> None:
        scan(scan.project(u), plain_orders(4))

    with torch.inference_mode():
        assert count_flops(run) == expected
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert count_flops(run) == expected


@torch.inference_mode()
def test_flops_of_attention() -> None:
    query, key = torch.randn(2, 10, 8, 4), torch.randn(2, 12, 8, 4)
    assert count_flops(lambda: attend(query, key, key)) == 2 * 2 * (2 * 8) * 10 * 12 * 4


def test_parameters() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False))
    module[1].requires_grad_(False)
    assert parameter_count(module) == 3 * 4 + 4 + 4 * 5
    assert parameter_count(module, learnable=True) == 3 * 4 + 4
    assert parameter_count(None) == 0


def test_timing_leaves_the_warm_up_out() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.03 if len(calls) == 1 else 0.001 * len(calls))

    timing = timed(call, repeats=3)
    assert len(calls) == 4
    assert 0.002 <= timing.minimum <= timing.median


def test_the_peak_is_of_the_fastest_product() -> None:
    peak = product_peak(((64, 64, 64), (256, 32, 128)), repeats=2)
    assert peak.flops > 1e6
    assert peak.way in ("matrix products", "1x1 convolutions")


def allocate(megabytes: int) -> int:
    """For another process: how much its peak memory grows when it fills so much."""
    before = peak_memory()
    torch.ones(megabytes * 2**18)
    return peak_memory() - before


def die() -> None:
    """As when memory does not suffice."""
    os._exit(9)


def test_memory_of_a_process_of_its_own() -> None:
    assert 180 * 2**20 < in_fresh_process(allocate, 200) < 220 * 2**20


def test_a_process_that_is_killed() -> None:
    with pytest.raises(UserError, match="die: its process was killed, perhaps for lack of memory"):
        in_fresh_process(die)


def test_the_command_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", [str(tmp_path / "benchmark.py"), "--opts", "exp", "a b"])
    described = machine()
    assert described["command"] == "python -m tools.benchmark --opts exp 'a b'"
    assert described["threads"] == torch.get_num_threads()

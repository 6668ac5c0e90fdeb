"""Counting against counts by hand, memory against what was arranged, and the command from end to end."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from model.methods import METHODS
from model.parts.fusion import attend
from model.parts.mamba import SelectiveScan
from model.parts.order import plain_orders
from tests.toy import toy_config
from tools import benchmark, measure
from tools.benchmark import inference_method, random_episode
from tools.measure import count_flops, in_fresh_process, peak_memory, product_peak, timed
from util.config import Config, load_config
from util.errors import UserError


def test_flops_of_products_and_convolutions() -> None:
    linear, conv = nn.Linear(5, 7, bias=False), nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    assert count_flops(lambda: linear(torch.randn(3, 5))) == 2 * 3 * 5 * 7
    assert count_flops(lambda: conv(torch.randn(1, 4, 8, 8))) == 2 * 8 * 8 * 6 * (4 // 2) * 9
    assert count_flops(lambda: torch.randn(5).exp()) == 0


@torch.inference_mode()
def test_flops_of_a_scan() -> None:
    """The two projections, and seven operations for each state, token and direction."""
    inner, states, rank, tokens = 8, 3, 2, 16
    scan, u = SelectiveScan(inner, states, rank, "cpu"), torch.randn(1, tokens, inner)
    expected = 2 * tokens * inner * 4 * (rank + 2 * states)  # x_proj
    expected += 2 * 4 * tokens * rank * inner  # dt_proj
    expected += 7 * 4 * tokens * inner * states
    assert count_flops(lambda: scan(scan.project(u), plain_orders(4))) == expected


@torch.inference_mode()
def test_flops_of_attention() -> None:
    query, key = torch.randn(2, 10, 8, 4), torch.randn(2, 12, 8, 4)
    assert count_flops(lambda: attend(query, key, key)) == 2 * 2 * (2 * 8) * 10 * 12 * 4


@pytest.fixture(params=[{}, {"shot": 3}, {"fusion": "cross_attention"}, {"ensemble": "false"}], ids=str)
def cfg(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    return toy_config(tmp_path, scan="cpu", **request.param)


@torch.inference_mode()
def test_the_stages_are_the_whole_episode(cfg: Config) -> None:
    method, device = inference_method(cfg)
    assert not any(weight.is_inference() for weight in method.parameters())  # as in test.py
    episode = random_episode(cfg, device, cfg.val_size)
    counted = {name: times * count_flops(call) for name, times, call in benchmark.stages(method, *episode)}
    inside = counted.pop("within them: base learner", 0)
    assert sum(counted.values()) == pytest.approx(count_flops(lambda: method(*episode)), rel=0.01)
    assert inside <= counted["features of its maps, one image"]


@pytest.mark.parametrize("arch", ["HMNet", "prior"])
def test_a_method_is_measured(arch: str, tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, arch=arch)
    total = benchmark.measure_stages(cfg, 0)[-1]
    row = benchmark.measure_episode(cfg, 0)
    assert row["GFLOP"] >= row["cached GFLOP"] and row["GFLOP"] >= total["GFLOP"] * 0.99
    assert min(row["cold s"], row["cached s"], row["known support s"], total["s"]) > 0
    parts = benchmark.measure_parameters(cfg, 0)
    assert sum(part["parameters M"] for part in parts[:-1]) == pytest.approx(parts[-1]["parameters M"])


def test_rows_of_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "IMAGE_SIZE", 120)
    cfg = toy_config(tmp_path)
    step = benchmark.measure_training(cfg, 0)
    assert step["episodes/s"] == pytest.approx(cfg.batch_size / step["s"])
    assert step["GFLOP"] > cfg.batch_size * benchmark.measure_episode(cfg, 0)["GFLOP"] / 2
    assert benchmark.measure_loader(cfg, 0)["images/s"] > 0 and benchmark.measure_predict(cfg, 0)["images/s"] > 0
    shares = [float(row["share"].rstrip("%")) for row in benchmark.measure_operators(cfg, 0)]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 105


def test_timing_leaves_the_warm_up_out() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.05 if len(calls) == 1 else 0.002)

    assert 0.002 <= timed(call, 0.02) < 0.05
    assert len(calls) > 2


def test_the_peak_is_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PRODUCTS", ((64, 64, 64), (256, 32, 128)))
    assert product_peak(torch.device("cpu"), torch.float32, 0) > 1e-3


def allocate(megabytes: int) -> int:
    """For another process: how much its peak memory grows when it fills so much."""
    before = peak_memory()
    torch.ones(megabytes * 2**18)
    return peak_memory() - before


@pytest.mark.slow
def test_memory_of_a_process_of_its_own() -> None:
    assert 180 * 2**20 < in_fresh_process(allocate, 200) < 220 * 2**20


def test_a_process_that_is_killed() -> None:
    with pytest.raises(UserError, match="_exit: its process was killed, perhaps for lack of memory"):
        in_fresh_process(os._exit, 9)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[dict, str]:
    (tmp_path / "toy.yaml").write_text(toy_config(tmp_path).to_yaml())
    given = ["--config", str(tmp_path / "toy.yaml"), "--quick", "--out", str(tmp_path), *words]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *given])
    benchmark.main()
    return json.loads((tmp_path / "benchmark.json").read_text()), (tmp_path / "benchmark.md").read_text()


def test_rows_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(measure, "PRODUCTS", ((256, 256, 256),))
    result, text = run(tmp_path, monkeypatch, "--arch", "prototype", "--rows", "stages", "training")
    assert result["config"]["arch"] == "prototype" and result["quick"] and result["peak GFLOP/s"].keys() >= {"off"}
    assert "## stages: Every stage of an episode." in text and "| embed, query " in text and "of peak" in text
    assert "prototype" in result["training"][0]["error"]  # it learns nothing


@pytest.mark.slow
def test_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, text = run(tmp_path, monkeypatch)
    assert all(f"## {row}: " in text for row in benchmark.ROWS)
    assert [row["val_size"] for row in result["sizes"]] == [105, 233] * 2
    assert [row["blocks"] for row in result["blocks"]] == [4, 6, 8, 10]


def test_several_methods_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda function, *arguments: function(*arguments))
    result, text = run(tmp_path, monkeypatch, "--arch", "prototype", "HSNet", "--opts", "output_stride", "32")
    prototype, hsnet = result["methods"]
    assert (prototype["method"], prototype["learn M"], hsnet["method"]) == ("prototype", 0, "HSNet")
    assert hsnet["learn M"] + hsnet["frozen M"] == pytest.approx(hsnet["parameters M"])
    assert hsnet["GFLOP"] > hsnet["cached GFLOP"] > 0 and min(hsnet["cold s"], hsnet["peak MB"]) > 0
    assert "weights and images: random" in text and "| HSNet " in text
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--arch", "prior", "HSNet", "--rows", "stages"])
    with pytest.raises(UserError, match="--rows: is for one method"):
        benchmark.main()


@pytest.mark.parametrize("arch", METHODS)
def test_every_method_has_a_config_of_its_own_size(arch: str) -> None:
    cfg = load_config(benchmark.own_config(arch), ["arch", arch])
    sizes = {"HSNet": 400, "DCAMA": 384, "BAM": 473, "HMNet": 473, "INSID3": 416}
    assert cfg.val_size == sizes.get(arch, cfg.val_size)
    assert cfg.arch == arch

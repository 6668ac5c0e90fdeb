"""Stages and sizes of small networks, and both commands from end to end."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.build import build_model
from model.parts.mamba import MambaBlock
from tests.toy import toy_config
from tools import benchmark, profile
from tools.benchmark import straight_line
from tools.measure import Peak, count_flops, parameter_count
from tools.stages import (
    Captured,
    MeasuredEpisode,
    episode_gflops,
    inference_model,
    measure_episodes,
    measure_stages,
    random_images,
    stage_gflops,
    stages,
)
from util.config import Config


@pytest.fixture(params=[{}, {"shot": 3}, {"fusion": "cross_attention"}, {"ensemble": "false"}], ids=str)
def cfg(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    return toy_config(tmp_path, **request.param)


def test_the_stages_are_the_whole_episode(cfg: Config) -> None:
    """Their operations add up to the network's own, counted without the stages."""
    model = build_model(cfg.model_copy(update={"scan": "cpu"}), pretrained=False).eval()
    images = random_images(cfg.val_size, cfg.shot)
    gflops = stage_gflops(cfg)
    with torch.inference_mode():
        outer = [stage for stage in stages(inference_model(cfg), images) if not stage.inside]
        total = count_flops(lambda: model(*images)) / 1e9
    summed = sum(stage.times * gflops[stage.name] for stage in outer)
    # The stages embed every image for both roles; the network each for its own.
    embedding = cfg.width * sum(model.backbone.channels[:2]) * 2 * (1 + cfg.shot) * 5**2 / 1e9
    images_only = sum(stage.times * gflops[stage.name] for stage in outer if "one image" in stage.name)
    merges = sum(parameter_count(part) for part in (model.embedding.merge_query, model.embedding.merge_support))
    merging = 2 * merges * cfg.feature_size**2 / 1e9
    assert images_only < total
    assert summed + merging == pytest.approx(total + embedding, rel=3e-3)  # no stage makes the priors' prototypes
    assert episode_gflops(cfg)["gflop"] == pytest.approx(total + embedding, rel=1e-6)


def test_a_cached_episode_needs_the_head_only(cfg: Config) -> None:
    needed, gflops = episode_gflops(cfg), stage_gflops(cfg)
    images = (1 + cfg.shot) * sum(gflop for name, gflop in gflops.items() if "one image" in name)
    assert needed["gflop"] - needed["cached_gflop"] == pytest.approx(images, rel=0.01)


@torch.inference_mode()
def test_episodes_cold_cached_and_with_known_support(cfg: Config) -> None:
    model = inference_model(cfg)
    episode = MeasuredEpisode(model, random_images(cfg.val_size, cfg.shot))
    scores = model(*episode.images).final
    for found in (episode.cold(), episode.cached(), episode.known_support()()):
        torch.testing.assert_close(found, scores, atol=1e-4, rtol=1e-3)


@torch.inference_mode()
def test_captured_maps_enter_the_trunk(cfg: Config) -> None:
    model, images = inference_model(cfg), random_images(cfg.val_size, cfg.shot)
    with Captured(model) as captured:
        model(*images)
    shape = (1, cfg.feature_size, cfg.feature_size, cfg.width)
    assert {name: tuple(x.shape) for name, x in captured.items()} == {"merge_query": shape, "merge_support": shape}
    before = dict(captured)
    model(*images)
    assert all(captured[name] is before[name] for name in before)  # outside the block nothing is kept


def test_measured_rows(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path)
    measured = measure_stages(cfg, repeats=1)
    assert [row["name"] for row in measured] == list(stage_gflops(cfg))
    assert all(row["seconds"] > 0 for row in measured)
    rows = measure_episodes(cfg, {33: 8, 49: 12}, repeats=1)
    assert [(row["size"], row["feature_size"]) for row in rows] == [(33, 8), (49, 12)]
    assert rows[0]["peak_memory_mb"] <= rows[1]["peak_memory_mb"]


def test_best_peaks() -> None:
    before = Peak(3e9, "matrix products"), Peak(9e9, "matrix products")
    after = Peak(6e9, "1x1 convolutions"), Peak(8e9, "1x1 convolutions")
    expected = {"gemm_gflops": 6, "gemm_way": "1x1 convolutions", "bf16_gflops": 9, "spread": 2}
    assert benchmark.best_peaks([before, after]) == expected


def test_no_share_is_above_the_peak() -> None:
    assert [benchmark.share(gflop, 2, 10) for gflop in (5, 20, 21)] == ["25%", "100%", "busy"]


def test_straight_line() -> None:
    points = [{"size": size, "cold": 3.0 * size**2 / 1e6 + 0.5} for size in (100, 200, 400)]
    line = straight_line(points)
    assert line == {
        "seconds_per_megapixel": pytest.approx(3),
        "intercept": pytest.approx(0.5),
        "r2": pytest.approx(1),
    }
    assert straight_line(points[:2]) is None


def test_profiled_parameters(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, blocks=3)
    found, model = profile.profile(cfg, repeats=0), build_model(cfg, pretrained=False)
    assert found["parameters"] == sum(row["parameters"] for row in found["parts"].values())
    assert found["learnable"] == sum(p.numel() for group in model.learnable_groups() for p in group) + parameter_count(
        model.trunk
    )
    inner, states, rank = 2 * cfg.width, cfg.state_size, 1
    scan = 4 * inner * ((rank + 2 * states) + rank + 1 + states + 1)  # x_proj, dt_proj, dt_bias, A_log, skip
    assert found["parameters"] - found["layer_parameters"] == 3 * scan


def test_operations_if_only_layers_counted(tmp_path: Path) -> None:
    """Both branches of every block applied to the whole grid, by hand."""
    model = build_model(toy_config(tmp_path, blocks=3), pretrained=False)
    width = 16
    block = model.trunk.blocks[0]
    assert isinstance(block, MambaBlock)
    branch = width * 4 * width + 2 * width * 9 + 2 * width * width + 2 * width * width  # in, conv, out, MLP
    assert profile.layer_flops(model.trunk, 8) == 2 * 8**2 * 3 * 2 * branch


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__.split('.')[-1]}.py", *words])
    module.main()


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "toy.yaml").write_text(toy_config(tmp_path).to_yaml())
    return str(tmp_path / "toy.yaml")


def test_profile_from_end_to_end(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(profile, monkeypatch, "--config", config, "--out", str(tmp_path), "--repeats", "0")
    result = json.loads((tmp_path / "profile.json").read_text())
    assert result["kind"] == "profile"
    assert list(result["blocks"]) == ["4", "6", "8", "10"]
    text = (tmp_path / "profile.md").read_text()
    learnable = f"{result['own']['learnable'] / 1e6:.2f}"
    assert re.search(rf"\| all +\| +{result['own']['parameters'] / 1e6:.2f} \| +{learnable} \|", text)
    assert "| 449.4 |" in text  # the paper's


@pytest.mark.slow
def test_benchmark_from_end_to_end(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(benchmark, monkeypatch, "--quick", "--config", config, "--out", str(tmp_path))
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert (result["kind"], result["quick"]) == ("benchmark", True)
    assert [point["size"] for point in result["sweep"]["hmnet"]["points"]] == [105, 169, 233]
    text = (tmp_path / "benchmark.md").read_text()
    for title in ("Stages of an episode", "Whole episodes", "A training step", "Image sizes"):
        assert f"## {title}" in text
    assert all(f"- {numbers}: takes " in text for numbers in ("float32", "bf16")) and "A loader worker: " in text

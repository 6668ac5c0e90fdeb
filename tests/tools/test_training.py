from pathlib import Path

import pytest

from tests.toy import toy_config
from tools import training
from tools.stages import episode_gflops
from tools.training import measure_training, training_gflops


def test_training_step(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path)
    row = measure_training(cfg, repeats=1)
    assert list(row) == ["forward", "backward", "optimiser", "peak_memory_mb"]
    assert all(value > 0 for value in row.values())
    assert training_gflops(cfg) > cfg.batch_size * episode_gflops(cfg)["gflop"] / 2


def test_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PICTURE_SIZE", 120)
    found = training.measure_loading(toy_config(tmp_path, shot=2))
    assert found["pictures_per_second"] > 0 and found["size"] == 120

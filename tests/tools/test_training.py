from pathlib import Path

from tests.toy import toy_config
from tools.stages import episode_gflops
from tools.training import measure_training, training_gflops


def test_training_step(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path)
    row = measure_training(cfg, repeats=1)
    assert list(row) == ["forward", "backward", "optimiser", "peak_memory_mb"]
    assert all(value > 0 for value in row.values())
    assert training_gflops(cfg) > cfg.batch_size * episode_gflops(cfg)["gflop"] / 2

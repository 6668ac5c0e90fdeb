"""tools/reproduce.sh makes what a table lacks, and nothing the second time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy import ROOT, toy_config, write_toy


@pytest.mark.slow
def test_reproduce_a_table(tmp_path: Path) -> None:
    """Base learner, meta-training and both tests of Table 5, and nothing the second time."""
    write_toy(tmp_path / "toy")
    cfg = toy_config(tmp_path, epochs=1, base_epochs=1, val_start_epoch=0, val_episodes=2, batch_size=4)
    (tmp_path / "toy.yaml").write_text(cfg.to_yaml())
    words = ["sh", "tools/reproduce.sh", "5", "--config", str(tmp_path / "toy.yaml"), "--splits", "0"]
    words += ["--exp", cfg.exp, "--out", str(tmp_path / "tables")]
    env = {**os.environ, "PYTHON": sys.executable, "NPROC": "1"}
    first, second = (subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert sum(line.startswith("+ ") for line in first.stdout.splitlines()) == 4
    assert "+ " not in second.stdout.replace("/ +", "")
    assert "Missing" not in second.stdout
    failed = subprocess.run([*words[:-2], "--out", "/dev/null/tables"], cwd=ROOT, env=env, capture_output=True)
    assert failed.returncode == 2 and subprocess.run(words[:2], cwd=ROOT, capture_output=True).returncode == 2

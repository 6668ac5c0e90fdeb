"""tools/reproduce.sh with an interpreter that only writes down what it is asked, and once with a real one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.toy import ROOT, toy_config, write_toy

FAKE = """#!/bin/sh
echo "$*" >> "$RECORD"
case "$*" in
    *--commands) printf '%s' "$COMMANDS" ;;
    fails*) exit 3 ;;
esac
"""


@pytest.fixture
def reproduce(tmp_path: Path) -> Any:
    """Call tools/reproduce.sh with an interpreter that only writes down what it was asked; its record and exit code."""
    fake = tmp_path / "fake python"
    fake.write_text(FAKE)
    fake.chmod(0o755)

    def call(commands: str, *words: str) -> tuple[list[str], int]:
        record = tmp_path / "record"
        record.write_text("")
        env = {**os.environ, "PYTHON": str(fake), "RECORD": str(record), "COMMANDS": commands}
        done = subprocess.run(
            ["sh", str(ROOT / "tools/reproduce.sh"), *words], env=env, cwd=tmp_path, capture_output=True
        )
        return record.read_text().splitlines(), done.returncode

    return call


def test_reproduce_runs_the_commands_in_order(reproduce: Any) -> None:
    commands = "python -m tools.benchmark\nsh tools/launch.sh 1 free config/demo.yaml test.py --opts exp 'a b'\n"
    record, code = reproduce(commands, "9", "--exp", "e")
    assert code == 0
    assert record == [
        "-m tools.report 9 --exp e --commands",
        "-m tools.plan",
        "-m tools.benchmark",
        "test.py --config config/demo.yaml --opts exp a b",
        "-m tools.report 9 --exp e",
    ]


def test_reproduce_without_anything_missing(reproduce: Any) -> None:
    assert reproduce("", "3") == (["-m tools.report 3 --commands", "-m tools.report 3"], 0)


def test_reproduce_stops_at_a_failure(reproduce: Any) -> None:
    record, code = reproduce("python fails\npython -m tools.benchmark\n", "3")
    assert (record, code) == (["-m tools.report 3 --commands", "-m tools.plan", "fails"], 3)
    assert reproduce("") == ([], 2)


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

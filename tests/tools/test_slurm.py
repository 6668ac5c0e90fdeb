"""The Slurm job on stand-ins for srun, scontrol and Python that note how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

JOB = Path(__file__).resolve().parents[2] / "tools" / "slurm" / "train.sbatch"
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
    "show hostnames") printf 'node7\\nnode8\\n' ;;
    *) echo "$*" >> "$NOTES/requeued" ;;
esac
"""
PYTHON = """#!/bin/sh
printf '%s\\n' "$@" > "$NOTES/arguments"
echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > "$NOTES/timeout"
trap 'sleep 1; exit 75' TERM
touch "$NOTES/started"
if [ -n "$CODE" ]; then exit "$CODE"; fi
while :; do sleep 0.05; done
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, script in {"srun": SRUN, "scontrol": SCONTROL, "a python": PYTHON}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "654321",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path), "PYTHON": str(tmp_path / "a python")}
    return {**places, **slurm, "CODE": ""}


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", str(JOB), *arguments], env=environment, stderr=subprocess.PIPE, text=True)


def finish(job: subprocess.Popen[str]) -> int:
    _, stderr = job.communicate(timeout=120)
    assert stderr == ""
    return job.returncode


def requeued(folder: Path) -> list[str]:
    path = folder / "requeued"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("given", "script"),
    [
        (["a b.yaml"], ["a b.yaml", "--opts"]),
        (["c.yaml", "--opts", "seeds", "[1, 2]"], ["c.yaml", "--opts", "seeds", "[1, 2]"]),
        (["c.yaml", "--viz"], ["c.yaml", "--viz", "--opts"]),
    ],
)
def test_what_is_run(environment: dict[str, str], tmp_path: Path, given: list[str], script: list[str]) -> None:
    assert finish(start({**environment, "CODE": "0", "SCRIPT": "train_base.py"}, *given)) == 0
    torchrun = ["--nnodes", "2", "--nproc_per_node", "4", "--rdzv_id", "654321", "--rdzv_backend", "c10d"]
    assert (tmp_path / "arguments").read_text().splitlines() == [
        *("-m", "tools.launch", *torchrun, "--rdzv_endpoint", "node7:34321"),
        *("train_base.py", "--config", *script, "resume", "auto"),
    ]
    assert int((tmp_path / "timeout").read_text()) < 170
    assert requeued(tmp_path) == []


def test_the_exit_code_is_that_of_the_run(environment: dict[str, str], tmp_path: Path) -> None:
    assert finish(start({**environment, "CODE": "137"}, "c.yaml")) == 137
    assert requeued(tmp_path) == []


@pytest.mark.parametrize(("number", "queued"), [(signal.SIGUSR1, ["requeue 654321"]), (signal.SIGTERM, [])])
def test_a_signal_lets_the_run_save(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals, queued: list[str]
) -> None:
    job = start(environment, "c.yaml")
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    job.send_signal(number)
    assert finish(job) == 75
    assert requeued(tmp_path) == queued


def test_usage(environment: dict[str, str]) -> None:
    job = start(environment)
    _, stderr = job.communicate(timeout=120)
    assert job.returncode == 2 and stderr.startswith("usage: sbatch tools/slurm/train.sbatch CONFIG")


def test_an_array_segments_shares_and_joins_them(environment: dict[str, str], tmp_path: Path) -> None:
    folders = ["--support", "s", "--query", "my photos", "--out", "o"]
    for more, expected in (([], ["--part", "slurm", *folders]), (["--finish"], [*folders, "--finish"])):
        job = subprocess.run(
            ["bash", str(JOB.with_name("predict.sbatch")), *folders, *more], env={**environment, "CODE": "1"}
        )
        assert job.returncode == 1
        assert (tmp_path / "arguments").read_text().splitlines() == ["predict.py", *expected]

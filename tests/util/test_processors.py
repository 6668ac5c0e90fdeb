"""Processors as the system's files tell of them, in folders that look like those of containers and of slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy import ROOT
from util import processors

V2, V1 = "0::/user/job\n", "12:cpuset:/\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/x\n"
PRINT = "import os, util, torch; print(os.environ.get('OMP_NUM_THREADS'), torch.get_num_threads())"


def write(root: Path, groups: str, files: dict[str, str]) -> Path:
    texts = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{path}": text for path, text in files.items()}
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def version_1(quota: str, period: str, group: str = "docker/1f/") -> dict[str, str]:
    folder = f"cpu,cpuacct/{group}"
    return {f"{folder}cpu.cfs_quota_us": f"{quota}\n", f"{folder}cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("", {}, 8),
        (V2, {"user/job/cpu.max": "max 100000\n", "user/cpu.max": "max 100000\n"}, 8),
        (V2, {"user/job/cpu.max": "200000 100000\n"}, 2),
        (V2, {"user/job/cpu.max": "max 100000\n", "user/cpu.max": "150000 50000\n"}, 3),  # of a group above
        (V2, {"user/job/cpu.max": "250000 100000\n"}, 3),
        (V2, {"user/job/cpu.max": "5000 100000\n"}, 1),
        (V2, {"user/job/cpu.max": "1600000 100000\n"}, 8),  # more than it is bound to
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),  # as a container sees it
        (V1, version_1("-1", "100000"), 8),
        (V1, version_1("50000", "25000"), 2),
        (V1, version_1("300000", "100000", group=""), 3),  # as a container sees it
        (V1, {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, 8),
        (V2, {"user/job/cpu.max": "unreadable\n"}, 8),
        ("no such line\n", {}, 8),
    ],
)
def test_the_quota(
    groups: str, files: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "bound_processors", lambda: 8)
    assert processors.processor_count(write(tmp_path, groups, files)) == count


def test_a_system_without_such_files(tmp_path: Path) -> None:
    assert processors.processor_count(tmp_path) == processors.bound_processors() >= 1


def threads(program: str, **variables: str) -> list[str]:
    """OpenMP's variable and PyTorch's threads after a program that starts without the variables of this process."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", f"{program}\n{PRINT}"]
    done = subprocess.run(command, env=environment | variables, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_quota_sets_the_threads_of_pytorch() -> None:
    """Unless the user has."""
    program = """
import sys, types
sys.modules["util.processors"] = types.SimpleNamespace(bound_processors=lambda: 8, processor_count=lambda: 1)
"""
    assert threads(program) == ["1", "1"]
    assert threads(program, OMP_NUM_THREADS="2")[0] == "2"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound here")
def test_a_bound_process_runs_as_many_threads() -> None:
    assert threads("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})") == ["None", "1"]

"""What goes wrong in a run, and what is left of it then."""

import os
import pickle
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.loader import StepPlan
from engine.run import Run
from engine.snapshot import snapshots
from tests.engine.runs import ITEMS, KEYS, Points, assert_end, drive, signal_at
from tests.processes import run_processes, start_processes
from util.distributed import ProcessGroup
from util.errors import UserError
from util.failures import explain_errors


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    with pytest.raises(UserError) as error:
        drive_with_poison(tmp_path)
    line = str(error.value)
    assert "\n" not in line
    names = re.findall(r"item\d+", line)
    plan = StepPlan(ITEMS, 2, 2, ProcessGroup(torch.device("cpu")))
    assert names == [f"item{number}" for batch in plan.batches(321 + 2, first_step=1)[:2] for number in batch]
    assert str(tmp_path / "snapshot" / "state_0002_000001.pth") in line
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def drive_with_poison(folder: Path) -> None:
    """A run in whose data a NaN stands at one step."""
    plan, intact = StepPlan(ITEMS, 2, 2, ProcessGroup(torch.device("cpu"))), Points.__getitem__
    bad = {number for batch in plan.batches(321 + 2, first_step=1)[:2] for number in batch}

    def poisoned(points: Points, item: int) -> dict[str, Any]:
        found = intact(points, item)
        return {**found, "points": found["points"] * torch.nan} if points.epoch == 2 and item in bad else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Points, "__getitem__", poisoned)
        drive(folder, **KEYS)


@pytest.mark.parametrize("resume", ["gone.pth", "cut.pth", "weights.pth"])
def test_bad_snapshots(tmp_path: Path, whole: tuple[Path, dict[str, Any]], resume: str) -> None:
    path = list(snapshots(whole[0] / "snapshot", "state").values())[-1]
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:-200])
    torch.save({"state_dict": {}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"\A[^\n]*{re.escape(str(tmp_path / resume))}[^\n]*\Z"):
        drive(tmp_path, resume=tmp_path / resume, **KEYS)


def on_a_full_disk(folder: Path, room: int) -> str:
    """The error of a run that may write no file of more bytes than `room`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    with pytest.raises(UserError) as error:
        drive(folder, save_minutes=1e-9, resume="auto", **KEYS)
    return str(error.value)


def test_a_full_disk_leaves_the_last_snapshot_as_it_was(tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(SystemExit):
        drive(tmp_path, signal_at(4), **KEYS)
    before = sorted((tmp_path / "snapshot").iterdir())
    size = max(path.stat().st_size for path in before)
    (line,) = run_processes(1, on_a_full_disk, tmp_path, size - 1)
    assert re.fullmatch(r"[^\n]*state_0002_000003\.pth: cannot write[^\n]*free some space[^\n]*", line)
    assert sorted((tmp_path / "snapshot").iterdir()) == before
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def lose_partner(folder: Path) -> str:
    """What the first process says when the second one is killed in mid-epoch."""

    def kill_second(run: Run) -> None:
        if run.process_group.rank == 1 and run.iteration == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError) as error, explain_errors():
        drive(folder, kill_second, save_minutes=1e-9, batch_size=2, accumulate=1)
    return str(error.value)


def test_a_dead_partner_is_told_in_one_line(tmp_path: Path) -> None:
    processes, queue = start_processes(2, lose_partner, tmp_path)
    rank, line, error = queue.get(timeout=120)
    assert (rank, error) == (0, None)
    assert re.fullmatch(r"lost contact with another process, [^\n]*resume auto[^\n]*", pickle.loads(line))
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    assert list(snapshots(tmp_path / "snapshot", "state"))[-1] == (2, 1)

"""The mechanics of a run, on a linear network with dropout; tests/test_train.py has the real ones."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.loader import load_steps
from engine.origin import checkpoint_config
from engine.run import Run
from engine.snapshot import read_snapshot, snapshots
from tests.engine import runs
from tests.engine.runs import (
    EPOCHS,
    KEYS,
    STEPS,
    Points,
    assert_end,
    assert_same,
    build,
    config,
    drive,
    last_snapshot,
    measure,
    signal_at,
)
from tests.processes import run_processes
from util.checkpoint import read_checkpoint
from util.distributed import ProcessGroup
from util.errors import UserError


@pytest.mark.parametrize("step", [0, 2, 4, 8])  # the first, one before a validation, in mid-epoch, the last
def test_a_signal_at_any_step_loses_nothing(tmp_path: Path, whole: tuple[Path, dict[str, Any]], step: int) -> None:
    with pytest.raises(SystemExit) as stop:
        drive(tmp_path, signal_at(step, random.choice([signal.SIGTERM, signal.SIGINT])), **KEYS)
    assert stop.value.code == 75
    progress = last_snapshot(tmp_path)["progress"]
    assert (progress["epoch"], progress["step"]) == (step // STEPS + 1, step % STEPS + 1)
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))
    for name in ("result.json", "snapshot/best_1shot.pth"):
        assert_same(read(whole[0] / name), read(tmp_path / name))


def read(path: Path) -> dict[str, Any]:
    if path.suffix == ".pth":
        content = read_checkpoint(path)
        return {**content, "config": {key: value for key, value in content["config"].items() if key != "exp"}}
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "weights"}


def test_a_snapshot_of_version_0_1_goes_on(tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    """It calls the metrics figures, and lacks newer keys."""
    with pytest.raises(SystemExit):
        drive(tmp_path, signal_at(4), **KEYS)
    (path,) = (path for place, path in snapshots(tmp_path / "snapshot", "state").items() if place == (2, 2))
    content = read_snapshot(path)
    content["progress"]["figures"] = content["progress"].pop("metrics")
    content["config"] = {key: value for key, value in content["config"].items() if key != "draw_workers"}
    torch.save(content, path)
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))
    lines = [
        re.findall(r"epoch 2 mean loss \S+ foreground IoU \d\.\d+", (f / "log.txt").read_text())
        for f in (tmp_path, whole[0])
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 1


def test_a_finished_run_is_not_run_again(whole: tuple[Path, dict[str, Any]]) -> None:
    steps: list[int] = []
    assert_end(whole, drive(whole[0], lambda run: steps.append(1), resume="auto", **KEYS))
    assert steps == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_a_run_that_waits_for_a_batch(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    intact, main = Points.__getitem__, os.getpid()

    def endless(points: Points, item: int) -> dict[str, Any]:
        if points.epoch == 2 and (tmp_path / "waits").exists():
            os.kill(main, signal.SIGTERM)
            time.sleep(600)
        return intact(points, item)

    def look(run: Run) -> None:
        if run.iteration == STEPS - 1:
            (tmp_path / "waits").touch()

    monkeypatch.setattr(Points, "__getitem__", endless)
    monkeypatch.setattr("engine.run.load_steps", lambda *arguments: load_unchecked(monkeypatch, *arguments))
    start = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        drive(tmp_path, look, loader_workers=workers, **KEYS)
    assert stop.value.code == 75 and time.monotonic() - start < 60
    assert max(snapshots(tmp_path / "snapshot", "state")) == (2, 0)
    (tmp_path / "waits").unlink()
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def load_unchecked(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """Without the first item being measured in the main process."""
    with monkeypatch.context() as patch:
        patch.setattr("engine.loader.item_bytes", lambda dataset, item: 1)
        return load_steps(*arguments)


def test_a_signal_ends_a_validation(tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    """At once, as everything was saved before it."""
    intact = measure

    def endless(run: Run, epoch: int, scores: list[float] | None) -> dict[str, float]:
        if epoch == 2 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            torch.rand(5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return intact(run, epoch, scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "measure", endless)
        with pytest.raises(SystemExit) as stop:
            drive(tmp_path, **KEYS)
        assert stop.value.code == 75
        assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def two_processes(folder: Path, step: int | None, keys: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(os.getpid())  # nothing may depend on what was before
    return drive(folder, signal_at(-1 if step is None else step), **keys)


def test_two_processes_go_on_and_are_one_process_of_two_rounds(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"batch_size": 2, "accumulate": 1}
    step = random.randrange(STEPS * EPOCHS)
    one = drive(tmp_path / "one", **KEYS)
    assert run_processes(2, two_processes, tmp_path / "two", step, keys) == [75, 75]
    two = run_processes(2, two_processes, tmp_path / "two", None, {**keys, "resume": "auto"})
    assert_end((tmp_path, {**one, "world": None}), {**two[0], "world": None})  # its number of processes


def test_snapshots_by_minutes_and_by_epochs(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def look(run: Run) -> None:
        seen.append(max(snapshots(tmp_path / "snapshot", "state"), default=(0, 0)))

    drive(tmp_path, look, save_minutes=1e-9, keep=3, **KEYS)
    assert seen == [(0, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)]
    assert list(snapshots(tmp_path / "snapshot", "state")) == [(3, 2), (3, 3), (4, 0)]
    seen.clear()
    drive(tmp_path, look, save_freq=2, epochs=3, **KEYS)
    assert seen[6:] == [(3, 0)] * 3


def test_weights_published_twice_are_there_once(tmp_path: Path) -> None:
    """A run killed between its first best weights and its next snapshot validates once more."""
    drive(tmp_path, scores=[0.5, 0.4, 0.3], epochs=1, **KEYS)
    state = tmp_path / "snapshot" / "state_0001_000003.pth"  # from before the validation
    assert state.is_file()
    for path in snapshots(tmp_path / "snapshot", "state").values():
        if path != state:
            path.unlink()
    drive(tmp_path, scores=[0.5, 0.4, 0.3], resume=state, epochs=1, **KEYS)
    assert [path.name for path in (tmp_path / "snapshot").glob("best*")] == ["best_1shot.pth"]


def test_only_the_best_is_published(tmp_path: Path) -> None:
    drive(tmp_path, scores=[0.25, 0.5, 0.4], **KEYS)
    assert sorted(path.name for path in (tmp_path / "snapshot").glob("[bt]*")) == [
        *("best_1shot.pth", "train_epoch_1_0.5000.pth")
    ]
    content = read_checkpoint(tmp_path / "snapshot" / "best_1shot.pth")
    assert content["epoch"] == 2 and content["trained_on"]["split"] == 0
    best = tmp_path / "snapshot" / "best_1shot.pth"
    (tmp_path / "config.yaml").write_text("blocks: nothing of the kind")  # the weights' own counts
    assert checkpoint_config(best) == config(tmp_path, **KEYS)
    assert checkpoint_config(best, ["blocks", "3"]).blocks == 3
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["miou"], result["epoch"], result["epochs"], result["finished"]) == (0.5, 2, 3, True)
    assert [entry["miou"] for entry in result["validations"]] == [0.25, 0.5, 0.4]


def test_what_a_killed_process_had_begun_to_write_goes(tmp_path: Path) -> None:
    half = {".state_0001_000002.pth.5.tmp", ".best_1shot.pth.5.tmp", ".train_epoch_1_0.5000.pth.5.tmp"}
    foreign = {".state_train5_0001_000002.pth.5.tmp", ".best_5shot.pth.5.tmp"}
    (tmp_path / "snapshot").mkdir()
    for name in half | foreign:
        (tmp_path / "snapshot" / name).touch()
    drive(tmp_path, epochs=1, **KEYS)
    assert {path.name for path in (tmp_path / "snapshot").glob(".*")} == foreign


def test_early_stop(tmp_path: Path) -> None:
    scores = [0.1, 0.3, 0.2, 0.3, 0.9]
    assert drive(tmp_path, scores=scores, epochs=5, stop_interval=2, **KEYS)["progress"]["epoch"] == 5
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 4


def test_a_snapshot_of_other_steps_is_refused(tmp_path: Path) -> None:
    drive(tmp_path, **KEYS)
    with pytest.raises(UserError, match="was written with 4 of 14 items a step, now it is 6 of 14; keep batch_size"):
        drive(tmp_path, resume="auto", batch_size=3, accumulate=2)


def test_other_settings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive(tmp_path, **KEYS)
    drive(tmp_path, resume="auto", print_freq=1, **KEYS)
    assert "WARNING" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"finished training with other settings: base_lr 0\.005 -> 0\.5; choose"):
        drive(tmp_path, resume="auto", base_lr=0.5, **KEYS)
    drive(tmp_path, resume="auto", base_lr=0.5, epochs=EPOCHS + 1, **KEYS)
    assert (
        "WARNING" in (out := capsys.readouterr().out)
        and f"epochs {EPOCHS} -> {EPOCHS + 1}, base_lr 0.005 -> 0.5" in out
    )


def test_snapshots_that_are_all_damaged_are_not_replaced(tmp_path: Path) -> None:
    drive(tmp_path, **KEYS)
    there = [*snapshots(tmp_path / "snapshot", "state").values()]
    for path in there:
        path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(UserError, match="none of its snapshots can be read; begin afresh by --overwrite"):
        drive(tmp_path, resume="auto", **KEYS)
    assert all(path.stat().st_size == 99 for path in there)


def test_a_truncated_snapshot_is_skipped(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        drive(tmp_path, signal_at(5), save_minutes=1e-9, keep=9, **KEYS)
    *_, path = snapshots(tmp_path / "snapshot", "state").values()
    path.write_bytes(path.read_bytes()[:999])
    resumed = drive(tmp_path, resume="auto", **KEYS)
    assert f"WARNING skipped {path}" in capsys.readouterr().out
    assert_end(whole, resumed)


def test_mixed_precision_goes_on_with_its_scale(tmp_path: Path) -> None:
    whole = tmp_path, drive(tmp_path, amp="fp16", **KEYS)
    with pytest.raises(SystemExit):
        drive(tmp_path / "parts", signal_at(4), amp="fp16", **KEYS)
    assert_end(whole, drive(tmp_path / "parts", amp="fp16", resume="auto", **KEYS))
    assert whole[1]["scaler"]["_growth_tracker"] > 0


def test_a_run_that_starts_behind_its_end_is_refused(tmp_path: Path) -> None:
    message = rf"start_epoch: {EPOCHS} should be below the number of epochs \({EPOCHS}\)"
    with pytest.raises(UserError, match=message):
        build(config(tmp_path, start_epoch=EPOCHS), ProcessGroup(torch.device("cpu")), tmp_path)

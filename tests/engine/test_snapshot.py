import os
import signal
import time
from pathlib import Path

import pytest
import torch

from engine.snapshot import PARTS, StopWaiting, newest_intact, noting_signals, read_snapshot, snapshots, write_snapshot
from util.checkpoint import save_checkpoint


def content(value: float = 0.0) -> dict[str, object]:
    return {part: {"value": torch.tensor(value)} for part in PARTS}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for epoch, step in [(1, 5), (2, 0), (2, 5), (10, 0)]:
        write_snapshot(tmp_path, "state", epoch, step, content(epoch), keep=2)
    assert list(snapshots(tmp_path, "state")) == [(2, 5), (10, 0)]
    assert read_snapshot(snapshots(tmp_path, "state")[10, 0])["scaler"]["value"] == 10


def test_runs_of_other_shots_in_the_same_folder_are_not_touched(tmp_path: Path) -> None:
    write_snapshot(tmp_path, "state_train5", 1, 1, content(), keep=1)
    write_snapshot(tmp_path, "state", 1, 2, content(), keep=1)
    write_snapshot(tmp_path, "state", 1, 3, content(), keep=1)
    assert names(tmp_path) == ["state_0001_000003.pth", "state_train5_0001_000001.pth"]


def test_a_run_that_begins_again_replaces_later_snapshots(tmp_path: Path) -> None:
    write_snapshot(tmp_path, "state", 7, 0, content(), keep=2)
    write_snapshot(tmp_path, "state", 1, 4, content(), keep=2)
    assert names(tmp_path) == ["state_0001_000004.pth"]


def test_the_newest_intact_one_is_found(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert newest_intact(tmp_path, "state", warnings.append) is None
    good, cut, foreign = (write_snapshot(tmp_path, "state", epoch, 0, content(), keep=9) for epoch in (1, 2, 3))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    save_checkpoint(foreign, {"state_dict": {}})
    assert newest_intact(tmp_path, "state", warnings.append) == good
    assert len(warnings) == 2
    assert str(foreign) in warnings[0] and "lacks optimizers" in warnings[0]
    assert str(cut) in warnings[1] and "\n" not in warnings[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with noting_signals() as request:
        assert request.received is None
        os.kill(os.getpid(), number)
        assert request.received is number
    assert signal.getsignal(number) == before


def test_what_only_waits_is_stopped() -> None:
    with noting_signals() as request:
        with pytest.raises(StopWaiting), request.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        with pytest.raises(StopWaiting), request.waiting():  # it has come between two batches
            pytest.fail("it waits again")


def test_one_of_several_processes_waits_a_little_longer() -> None:
    with noting_signals(patience=1) as request:
        start = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopWaiting), request.waiting():
            time.sleep(60)
        assert 0.5 < time.monotonic() - start < 30
    with noting_signals(patience=60) as request, request.waiting():
        os.kill(os.getpid(), signal.SIGTERM)  # the block ends before its patience does
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), noting_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

from pathlib import Path

import pytest

from util.logger import Clock, RunLog


def test_lines_go_to_console_and_file_and_the_file_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("first", "second"):
        with RunLog(tmp_path / "run" / "log.txt") as log:
            log.info(line)
            log.warning(f"{line} is odd")
    written = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in written] == [
        *("INFO first", "WARNING first is odd", "INFO second", "WARNING second is odd")
    ]
    assert capsys.readouterr().out.splitlines() == written


def test_other_processes_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "log.txt", tmp_path / "board", enabled=False) as log:
        log.warning("unheard")
        log.curves({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_curves(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.txt", tmp_path / "board") as log:
        log.curves({"train/loss": 0.5}, 3)
    (events,) = (tmp_path / "board").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock()
    assert clock.left(10) == "00:00:00"
    for _ in range(4):
        now += 2.5
        clock.tick()
    assert clock.rate == pytest.approx(0.4)
    assert clock.left(10) == "00:00:25"
    assert clock.left(40_000) == "1d 03:46:40"
    assert clock.left(10, 1) == "00:00:25 plus 1 validation"
    assert clock.left(10, 3) == "00:00:25 plus 3 validations"
    for seconds in (20, 40):
        with clock.validation():
            now += seconds
    assert clock.left(10) == "00:00:25" and clock.left(10, 2) == "00:01:25"


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = RunLog(tmp_path / "log.txt")
    with pytest.raises(OSError, match="No space left on device"):
        log.info("a line")

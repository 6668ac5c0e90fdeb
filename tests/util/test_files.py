import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import start_processes
from util.files import atomic_open, atomic_write, remove_temporary


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def write_for_ever(path: Path) -> None:
    with atomic_open(path) as file:
        file.write(b"half")
        file.flush()
        time.sleep(60)


def test_a_killed_write_leaves_what_can_be_cleared_away(tmp_path: Path) -> None:
    path, other = tmp_path / "state_0001_000002.pth", tmp_path / ".state_train5_0001_000002.pth.7.tmp"
    path.write_text("old")
    other.touch()
    (process,), _ = start_processes(1, write_for_ever, path)
    while len(list(tmp_path.iterdir())) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 3
    remove_temporary(tmp_path, "state_[0-9]*.pth")
    assert sorted(tmp_path.iterdir()) == [other, path]

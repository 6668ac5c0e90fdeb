import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import start_processes
from util.errors import UserError
from util.files import atomic_open, atomic_write, claimed, numbered_lines, remove_temporary


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


def test_a_claimed_folder_is_as_it_was_after_a_mistake(tmp_path: Path) -> None:
    out = tmp_path / "a/out"
    with pytest.raises(ValueError), claimed(out, lambda path: False):
        raise ValueError
    assert not out.exists()
    with claimed(out, lambda path: False):
        (out / "mine").touch()
        with pytest.raises(UserError, match="another run"), claimed(out, lambda path: path.name == "mine"):
            pass
    assert [path.name for path in out.iterdir()] == ["mine"]
    with (
        pytest.raises(UserError, match="holds mine, which this program did not write"),
        claimed(out, lambda path: False),
    ):
        pass


def test_lines_are_numbered_as_editors_do(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("a\x0bb\n\n c \n", "a\x0bb\r\n\r\n c \r\n", "a\x0bb\r\r c "):
        for code in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_bytes(text.encode(code))
            assert numbered_lines(path, "list") == [(1, "a\x0bb"), (3, "c")]
    path.write_bytes(b"\xe9")
    with pytest.raises(UserError, match="no readable list, not UTF-8 text"):
        numbered_lines(path, "list")


def test_what_cannot_be_written_is_named_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a.md").mkdir()
    with pytest.raises(OSError) as found:
        atomic_write(tmp_path / "a.md", "text")
    assert found.value.filename == str(tmp_path / "a.md") and not [*tmp_path.glob(".*")]

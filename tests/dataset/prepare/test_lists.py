"""Public lists are fetched from a server, once, and read as they are."""

from pathlib import Path

import pytest

from tests.server import Server
from tools.prepare import main
from util.errors import UserError


def test_lists_are_fetched_once(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "archives").mkdir()
    for name in ("test.txt", "val.txt"):
        (tmp_path / "archives" / name).write_bytes(b"zebra\r\n")
    words = ["lists", "fss1000", "--out", str(tmp_path / "lists"), "--mirror", server.url]
    with pytest.raises(UserError, match=r"fss/trn.txt could not be fetched"):
        main(words)
    (tmp_path / "archives/trn.txt").write_bytes(b"ox\n")
    assert main(words) == 0
    asked = [path.removeprefix("/mirror/") for path, _ in server.requests]
    assert asked == ["fss/test.txt", "fss/val.txt", "fss/trn.txt", "fss/trn.txt"]  # no list twice
    assert (tmp_path / "lists/fss/test.txt").read_bytes() == b"zebra\r\n"
    assert capsys.readouterr().out.count("there  ") == 3
    (tmp_path / "lists/fss/val.txt").unlink()
    assert main(words[:4]) == 1  # says so, and fetches nothing
    assert "missing  " in capsys.readouterr().out and len(server.requests) == 4

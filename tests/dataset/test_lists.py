"""List files as people and programs write them."""

from pathlib import Path

import pytest

from dataset.lists import find_list, locate, read_class_file, read_list, span
from util.errors import UserError


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_pairs(tmp_path: Path, encoding: str) -> None:
    text = "a/1.jpg m/1.png\r\n\r\n  b\\ü.jpg\tm\\ü.png \r\n"
    path = write(tmp_path / "val.txt", text.encode(encoding))
    assert read_list(path) == [("a/1.jpg", "m/1.png"), ("b/ü.jpg", "m/ü.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list file is empty"),
        ("a.jpg a.png\nb.jpg\n", ":2: not `image mask`"),
        ("a.jpg a.png\n\na.jpg b.png\n", ":3: a.jpg is listed twice"),
    ],
)
def test_mistakes_in_pairs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_list(write(tmp_path / "val.txt", text))


def test_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.txt", "3 traffic light\n1\tcat\n")
    assert read_class_file(path) == {1: "cat", 3: "traffic light"}
    for text in ("1 cat\n1 dog\n", "1 cat\n2 cat\n", "cat\n", "1\n", "-1 cat\n", "1 a\x07b\n"):
        with pytest.raises(UserError, match=r"classes\.txt:\d"):
            read_class_file(write(tmp_path / "classes.txt", text))


def test_where_lists_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "second.txt", "x")
    assert find_list(tmp_path, "first.txt", "second.txt") == tmp_path / "second.txt"
    with pytest.raises(UserError, match=r"no list first\.txt or third\.txt; set lists, or fetch it"):
        find_list(tmp_path, "first.txt", "third.txt")
    monkeypatch.chdir(tmp_path)
    assert locate(Path("data"), "second.txt") == Path("second.txt")
    assert locate(Path("data"), "third.txt") == Path("data/third.txt")
    assert (span([3, 4, 5]), span([1, 3]), span([])) == ("3..5", "1, 3", "none")

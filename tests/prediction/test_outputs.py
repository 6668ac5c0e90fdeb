"""Which images are segmented, and what their outputs are called."""

import re
from pathlib import Path

import pytest

from prediction.outputs import find_queries, output_names
from util.errors import UserError


def test_outputs_never_meet() -> None:
    files = ["a.jpg", "a.png", "b/a.jpg", "b.jpg", "a.jpg.png", "c.d.jpg", "c.jpg", "b/x.jpg", "b/x.jpg.jpg"]
    names = output_names(files)
    assert len(set(names.values())) == len(files)
    assert names["b.jpg"] == "b" and names["b/a.jpg"] == "b/a" and names["c.d.jpg"] == "c.d"
    assert names["a.jpg"] == "a.jpg" and names["a.png"] == "a.png"


def test_which_images_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = ("a.jpg", "b/c.PNG", "b/n.txt", ".x/d.jpg", "out/e.png")
    for name in (*(f"photos/{name}" for name in inside), "more/f.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    out = [Path("photos/out")]
    assert find_queries(["photos"], out) == (tmp_path / "photos", ["a.jpg", "b/c.PNG"])
    assert find_queries([str(tmp_path / "photos")], out) == (tmp_path / "photos", ["a.jpg", "b/c.PNG"])
    assert find_queries(["photos/**/*.*"], out) == (tmp_path / "photos", ["a.jpg", "b/c.PNG", "b/n.txt"])
    assert find_queries(["photos/a.jpg", "photos/*.jpg"]) == (tmp_path / "photos", ["a.jpg"])
    assert find_queries(["photos", "more/f.jpg"], out) == (tmp_path, ["more/f.jpg", "photos/a.jpg", "photos/b/c.PNG"])
    assert find_queries(["photos/out"], [Path("photos")]) == (tmp_path / "photos/out", ["e.png"])
    for wrong in ("absent", "photos/*.gif", "photos/b/*.txt/"):
        with pytest.raises(UserError, match=re.escape(wrong)):
            find_queries(["photos", wrong])

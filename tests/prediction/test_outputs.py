"""Which images are segmented, and what their outputs are called."""

import json
import re
from pathlib import Path

import pytest

from prediction.outputs import Outputs
from prediction.queries import find_queries
from util.errors import UserError


def test_outputs_never_meet() -> None:
    files = ["a.jpg", "a.png", "b/a.jpg", "b.jpg", "a.jpg.png", "c.d.jpg", "c.jpg", "b/x.jpg", "b/x.jpg.jpg"]
    outputs = Outputs(Path("out"), files)
    names = {file: outputs.name(file) for file in files}
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
    for wrong in ("absent", "photos/*.gif", "photos/b/*.txt/", ""):
        with pytest.raises(UserError, match=re.escape(wrong or "'': no images")):
            find_queries(["photos", wrong])


def test_brackets_in_the_names_of_folders_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run [1]/a.jpg", "run [1]/b/c*d.jpg", "run [1]/b/ccd.jpg", "run 1/x.jpg", "[ab].jpg", "a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_queries(["run [1]/*.jpg"]) == (tmp_path / "run [1]", ["a.jpg"])
    assert find_queries([f"{tmp_path}/run [1]/**/*.jpg"]).files == ["a.jpg", "b/c*d.jpg", "b/ccd.jpg"]
    assert find_queries(["run [1]/b/c*d.jpg"]).files == ["c*d.jpg"]
    assert find_queries(["[ab].jpg"]).files == ["[ab].jpg"]
    assert find_queries(["run [1-3]/*.jpg"]).files == ["run 1/x.jpg"]


def test_results_of_other_runs_are_no_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"query": "q", "weights": "w", "support": "s"}
    for name in ("a.jpg", "sub/run/masks/a.png", "sub/run/overlays/a.jpg", "sub/other/b.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub/run/run.json").write_text(json.dumps(settings))
    (tmp_path / "sub/other/run.json").write_text("[]")  # somebody else's
    for pattern in (str(tmp_path), f"{tmp_path}/**/*.jpg"):
        assert find_queries([pattern]).files == ["a.jpg", "sub/other/b.jpg"]
    assert "3 files or folders are no images, or results, or links" in capsys.readouterr().out
    (tmp_path / "sub/more").symlink_to(tmp_path / "sub/other")
    (tmp_path / "sub/gone.jpg").symlink_to(tmp_path / "absent.jpg")
    for pattern, count in (("sub", 4), ("sub/**/*.jpg", 2)):  # with the results below sub/run
        assert "other/b.jpg" in find_queries([str(tmp_path / pattern)]).files
        assert f"{count} files or folders are no images, or results, or links" in capsys.readouterr().out
    list_file = tmp_path / "sub/list.txt"
    list_file.write_text("other/b.jpg\n\n../a.jpg\nother/../gone.jpg\n")
    assert find_queries([str(list_file)]) == (tmp_path / "sub", ["../a.jpg", "gone.jpg", "other/b.jpg"])
    assert find_queries([str(tmp_path / "sub/run/masks")]).files == ["a.png"]

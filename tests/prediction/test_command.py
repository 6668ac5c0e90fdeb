"""What stops a run before its first image leaves nothing behind."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from tests.toy import draw_image, generator
from util.config import Config
from util.errors import UserError


def test_mistakes_in_weights_and_boxes_leave_no_folder(
    experiment: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    support, photos, out, boxes = (tmp_path / name for name in ("support", "photos", "out", "boxes.csv"))
    for folder in (support, photos):
        folder.mkdir()
        image, mask = draw_image(generator(), 40, 50, [3])
        Image.fromarray(image).save(folder / "a.jpg")
    Image.fromarray((mask == 3).astype(np.uint8)).save(support / "a.png")
    (experiment[1].parent / "best_1shot_bad.pth").write_bytes(experiment[1].read_bytes()[:-99])

    def run(weights: Path, *more: object) -> int:
        words = ("--weights", weights, "--support", support, "--query", photos, "--out", out, *more)
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
        return predict.main()

    def write_box(right: int) -> None:
        boxes.write_text(f"file,left,top,right,bottom\na.jpg,5,5,{right},30\n")

    with pytest.raises(UserError, match="bad.pth: not a plain tensor archive"):
        run(experiment[1].parent / "best_1shot_bad.pth")
    write_box(5000)
    with pytest.raises(UserError, match="is no box .* within 50x40"):
        run(experiment[1], "--boxes", boxes)
    assert not out.exists()
    write_box(40)
    assert run(experiment[1], "--boxes", boxes) == 0 and (out / "masks/a.png").is_file()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_box(5000)
    with pytest.raises(UserError, match="is no box"):
        run(experiment[1], "--boxes", boxes, "--overwrite")
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_every_object_is_in_the_table(
    experiment: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = draw_image(generator(), 40, 50, [3])
    for name in ("support", "photos"):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "a.jpg")
    Image.fromarray((mask == 3).astype(np.uint8)).save(tmp_path / "support/a.png")
    folders = [word for name in ("support", "query", "out") for word in (f"--{name}", str(tmp_path / name))]
    folders[3] = str(tmp_path / "photos")
    words = ["predict.py", "--weights", str(experiment[1]), *folders, "--format"]
    monkeypatch.setattr(sys, "argv", [*words, "csv,coca"])
    with pytest.raises(UserError, match="--format coca"):
        predict.main()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", [*words, "csv"])
    assert predict.main() == 0
    record = json.loads((tmp_path / "out/manifest.jsonl").read_text())
    with (tmp_path / "out/objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    areas = [int(row["area"]) for row in rows]
    assert [float(row["score"]) for row in rows] == record["scores"] and sum(areas) == record["area"] > 0
    assert record["score"] == pytest.approx(np.average(record["scores"], weights=areas), abs=1e-4)


def test_without_weights_the_supports_alone_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = ["--support", "s", "--query", "q", "--out", "o"]
    for words, arch in (([], None), (["--arch", "prior"], "prior"), (["--weights", "w.pth"], None)):
        monkeypatch.setattr(sys, "argv", ["predict.py", *folders, *words])
        assert predict.parse_arguments().arch == arch
    monkeypatch.setattr(sys, "argv", ["predict.py", *folders, "--weights", "w.pth", "--arch", "prior"])
    with pytest.raises(UserError, match="give either --weights FILE"):
        predict.parse_arguments()

"""What stops a run before its first image leaves nothing behind."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from prediction.choice import find_source
from prediction.objects import find_objects
from prediction.outputs import Outputs
from prediction.predictor import Prediction
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
    with (tmp_path / "out/objects.csv").open(newline="") as file:
        areas = [int(row["area"]) for row in csv.DictReader(file)]
    with Image.open(tmp_path / "out/masks/a.png") as opened:
        assert areas == [item.area for item in find_objects(np.asarray(opened))]


def test_the_manifest_has_the_score_of_every_object(tmp_path: Path) -> None:
    mask = np.zeros((8, 9), np.uint8)
    mask[1:3, 1:4], mask[5:, 6:], mask[7, 0] = 2, 2, 1
    sure = np.random.default_rng(0).uniform(0.8, 1, mask.shape)
    probabilities = np.stack([(mask == value) * sure for value in (1, 2)]).astype(np.float32)
    image, prediction = np.zeros((8, 9, 3), np.uint8), Prediction(("a", "b"), mask, probabilities)
    one, two = Outputs(tmp_path, ["x.jpg"]).write("x.jpg", image, prediction, {"a": 3, "b": 5}, 0.1)
    assert one["scores"] == [one["score"]] and len(two["scores"]) == 2
    assert two["score"] == pytest.approx(np.average(two["scores"], weights=[6, 9]), abs=1e-4)


def test_scenes_of_many_bands_come_back_where_they_lie(
    experiment: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rasterio = pytest.importorskip("rasterio")
    move = rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)
    for name in ("support/a", "support/b", "photos/c"):
        image, mask = draw_image(generator(), 40, 50, [3])
        path = tmp_path / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        profile = {"driver": "GTiff", "count": 5, "dtype": "uint16", "height": 40, "width": 50, "transform": move}
        with rasterio.open(path, "w", crs="EPSG:32633", **profile) as file:
            file.write(np.stack([image[..., 0]] * 5).astype(np.uint16) * np.arange(1, 6)[:, None, None] * 7)
        if "support" in name:
            Image.fromarray((mask == 3).astype(np.uint8)).save(path.with_suffix(".png"))
    places = ["--support", tmp_path / "support", "--query", tmp_path / "photos", "--out", tmp_path / "out"]

    def run(*more: str) -> int:
        words = ["predict.py", "--weights", experiment[1], *places, "--metres", "--format", "geotiff,csv", *more]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        return predict.main()

    for more, line in (([], "has 5 bands; say which"), (["--bands", "6"], "has 5 bands, and no band 6")):
        with pytest.raises(UserError, match=line):
            run(*more)
    assert not (tmp_path / "out").exists() and run("--bands", "4,3,2") == 0
    with rasterio.open(tmp_path / "out/geotiff/c.tif") as file, Image.open(tmp_path / "out/masks/c.png") as drawn:
        assert file.crs == "EPSG:32633" and file.transform == move
        assert np.array_equal(file.read(1), np.asarray(drawn))
    settings = json.loads((tmp_path / "out/run.json").read_text())
    assert settings["bands"] == [4, 3, 2] and len(settings["limits"]) == 3
    assert run("--bands", "4,3,2") == 0  # nothing is left to do
    Image.fromarray(image).save(tmp_path / "photos/d.png")
    with pytest.raises(UserError, match=r"d.png: has no coordinate reference system; leave out --metres"):
        run("--bands", "4,3,2")


def test_without_weights_the_supports_alone_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = ["--support", "s", "--query", "q", "--out", "o"]
    for words, arch in (([], None), (["--arch", "prior"], "prior"), (["--weights", "w.pth"], None)):
        monkeypatch.setattr(sys, "argv", ["predict.py", *folders, *words])
        assert predict.parse_arguments().arch == arch
    monkeypatch.setattr(sys, "argv", ["predict.py", *folders, "--support", ""])
    with pytest.raises(SystemExit, match="2"):
        predict.parse_arguments()
    with pytest.raises(UserError, match="give either --weights FILE"):
        find_source("w.pth", "prior", None, [])

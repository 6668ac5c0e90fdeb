"""What predict.py makes of images, and what it says of those that it cannot read."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from prediction.predictor import Predictor
from tests.predict.runs import COLORS, arguments, manifest, read, scene, write_photos
from tests.toy import ROOT
from util.errors import UserError


def write_odd_images(folder: Path) -> dict[str, tuple[int, int]]:
    """Images of all kinds; their heights and widths as shown."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(scene(90, 40)).save(folder / "portrait.jpg")
    Image.fromarray(scene(40, 400)).save(folder / "panorama.webp")
    Image.fromarray(scene(1500, 4000)).save(folder / "large.jpg")
    Image.fromarray(scene(32, 32)).save(folder / "small.png")
    Image.fromarray(scene()).convert("L").save(folder / "grey.jpg")
    Image.fromarray(np.dstack([scene(), np.full((40, 52), 200, np.uint8)])).save(folder / "alpha.png")
    cv2.imwrite(str(folder / "deep.tif"), scene().astype(np.uint16) << 8)
    cv2.imwrite(str(folder / "deep_grey.png"), scene()[..., 0].astype(np.uint16) << 8)
    Image.fromarray(scene()).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(scene()).quantize(16).save(folder / "palette.png")
    Image.fromarray(scene()).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(scene()[..., 0] > 99).save(folder / "two_tone.png")
    sizes = {"portrait.jpg": (90, 40), "panorama.webp": (40, 400), "large.jpg": (1500, 4000), "small.png": (32, 32)}
    return {path.name: sizes.get(path.name, (40, 52)) for path in folder.iterdir()} | {"turned.jpg": (52, 40)}


def test_images_of_all_kinds(run: Any, weights: Path, support: Path, tmp_path: Path) -> None:
    sizes = write_odd_images(tmp_path / "photos")
    assert run("--batch", 3) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "1 thing3\n2 thing5\n"
    by_file: dict[str, list[dict[str, Any]]] = {}
    for record in manifest(tmp_path):
        by_file.setdefault(record["file"], []).append(record)
    assert by_file.keys() == sizes.keys()
    for file, records in by_file.items():
        mask = read(tmp_path / "out" / records[0]["mask"])
        assert mask.shape == sizes[file]
        found = [record for record in records if record["class"]]
        assert len(found) == records[0]["found"] == len(np.unique(mask[mask > 0]))
        for record in found:
            region = mask == record["value"]
            rows, columns = np.nonzero(region)
            assert record["class"] == f"thing{COLORS[record['value'] - 1]}" and record["area"] == region.sum()
            assert record["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert 0 < record["score"] < 1 and record["seconds"] > 0
        drawn = read(tmp_path / "out" / records[0]["overlay"])
        assert 320 <= max(drawn.shape) <= 2200
    assert len(by_file) < len(manifest(tmp_path))  # something is found
    predictor = Predictor.from_checkpoint(weights.parents[1] / "config.yaml", weights, "cpu")
    classes = {}
    for folder in sorted(support.iterdir()):
        images = sorted(folder.glob("*.jpg"))
        classes[folder.name] = images, [path.with_suffix(".png") for path in images]
    predictor.set_support(classes)
    expected = predictor.predict(tmp_path / "photos/portrait.jpg").mask
    assert (read(tmp_path / "out/masks/portrait.png") != expected).mean() < 0.01


def test_masks_keep_the_values_of_the_supports(run: Any, tmp_path: Path, support: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    for folder in sorted(support.iterdir()):
        for path in folder.iterdir():
            path.rename(support / path.name)
        folder.rmdir()
    for number, class_id in enumerate(COLORS * 2):
        path = support / f"{number}.png"
        Image.fromarray((read(path) // 255 * class_id * 10).astype(np.uint8)).save(path)
    (support / "classes.txt").write_text("30 blue\n50 violet\n")
    assert run() == 0
    records = manifest(tmp_path)
    assert {(record["class"], record["value"]) for record in records} <= {("blue", 30), ("violet", 50), (None, None)}
    for record in records:
        mask = read(tmp_path / "out" / record["mask"])
        assert set(np.unique(mask)) <= {0, 30, 50} and (mask == record["value"]).sum() == record["area"]
    assert run("--classes", "violet", "--out", tmp_path / "other") == 0
    assert (tmp_path / "other/classes.txt").read_text() == "50 violet\n"


def test_boxes_as_supports(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    file = tmp_path / "boxes.csv"
    file.write_text("file,left,top,right,bottom,class\nthing3/0.jpg,5,5,40,35,box\n")
    assert run("--boxes", file) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "1 box\n"
    file.write_text("file,left,top,right,bottom,class\nthing3/0.jpg,5,5,51,35,box\n")
    with pytest.raises(UserError, match=r"0\.jpg of 'box': \(5.0, 5.0, 51.0, 35.0\) is no box .* within 50x40"):
        run("--boxes", file, "--out", tmp_path / "other")


def test_unreadable_images_are_told_at_the_end(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (photos / "1.jpg").write_bytes((photos / "1.jpg").read_bytes()[:400])
    (photos / "text.png").write_text("no image")
    assert run("--html", "--batch", 2) == 1
    printed = capsys.readouterr()
    assert "3 images segmented" in printed.out
    assert "2 images could not be read:" in printed.err
    assert re.search(r"photos/1\.jpg: .*\n.*photos/text\.png: ", printed.err)
    assert {record["file"] for record in manifest(tmp_path)} == {"0.jpg", "2.jpg", "3.jpg"}
    assert "text.png" in (tmp_path / "out/index.html").read_text()
    Image.fromarray(scene()).save(photos / "text.png")
    (photos / "1.jpg").unlink()
    assert run() == 0
    assert "1 images segmented" in capsys.readouterr().out
    assert len({record["file"] for record in manifest(tmp_path)}) == 4


def test_tiles_of_large_images(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    Image.fromarray(scene(150, 200)).save(tmp_path / "photos/large.png")
    assert run("--tile", 60, "--scale", "auto") == 0
    assert read(tmp_path / "out/masks/large.png").shape == (150, 200)
    with pytest.raises(UserError, match="other weights, settings"):
        run("--tile", 60)
    with pytest.raises(UserError, match="other weights, settings"):
        run()
    for wrong, message in ((["--tile", 1], "--tile 1: is less than"), (["--scale", "auto"], "--scale auto: cuts")):
        with pytest.raises(UserError, match=message):
            run("--out", tmp_path / "other", *wrong)
    assert not (tmp_path / "other").exists()


def test_a_file_that_vanishes(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 2)
    listing = tmp_path / "photos/list.txt"
    listing.write_text("0.jpg\ngone.jpg\n1.jpg\n")
    assert run("--query", listing) == 1
    assert "photos/gone.jpg: no such image" in capsys.readouterr().err
    assert {record["file"] for record in manifest(tmp_path)} == {"0.jpg", "1.jpg"}


def test_thresholds_probabilities_and_counts(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 2)
    assert run("--probabilities", "--no-overlays", "--classes", "thing3") == 0
    assert not (tmp_path / "out/overlays").exists()
    for number in range(2):
        probability = cv2.imread(str(tmp_path / f"out/probabilities/{number}.png"), cv2.IMREAD_UNCHANGED)
        assert probability.dtype == np.uint16
        wrong = (probability > 65535 / 2) != (read(tmp_path / f"out/masks/{number}.png") > 0)
        assert np.abs(probability[wrong] - 65535 / 2).max(initial=0) < 1  # but for rounding
    found = sum(record["class"] is not None for record in manifest(tmp_path))
    counts = f"of 2 images {f'thing3 in {found}, ' if found else ''}nothing in {2 - found}"
    assert counts in capsys.readouterr().out
    settings = json.loads((tmp_path / "out/run.json").read_text())
    assert (settings["images"], settings["found"].get("thing3", 0), settings["nothing"]) == (2, found, 2 - found)
    with pytest.raises(UserError, match="other weights, settings"):
        run("--classes", "thing3", "--threshold", "0.999999")
    assert run("--threshold", "0.999999", "--overwrite", "--classes", "thing3") == 0
    assert "nothing in 2" in capsys.readouterr().out
    assert run("--threshold", "0.999999", "--classes", "thing3") == 0  # what was asked for more is there
    with pytest.raises(UserError, match="--threshold 1.0"):
        run("--threshold", 1)


class Page(HTMLParser):
    """What a browser would show of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_page(run: Any, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    (photos / "<script>&'x.jpg").write_bytes((photos / "1.jpg").read_bytes())
    Image.fromarray(scene(300, 900)).save(photos / "wide.jpg")
    assert run("--html") == 0
    page = Page()
    text = (tmp_path / "out/index.html").read_text()
    page.feed(text)
    assert "<script>&'x.jpg" in page.text and "4 images." in page.text
    assert len(page.sources) == 4 and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(text) < 4 * 60_000
    data = base64.b64decode(page.sources[-1].split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (320, 107)
    record = next(record for record in manifest(tmp_path) if record["class"])
    assert f"{record['class']}: {record['area']} pixels" in page.text
    before = (tmp_path / "out/index.html").stat().st_mtime_ns
    assert run("--html") == 0  # with nothing left to segment
    assert (tmp_path / "out/index.html").stat().st_mtime_ns > before


def test_a_folder_of_others_is_left_alone(run: Any, tmp_path: Path, support: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    data = tmp_path / "out"
    (data / "masks").mkdir(parents=True)
    for name in ("masks/0.png", "classes.txt", "masks/.0.png.7.tmp", ".a.b.tmp", "run.json"):
        (data / name).write_text("[]")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    for more in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="which this program did not write; give another --out"):
            run(*more)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    (support / "thing3/0.png").unlink()
    with pytest.raises(UserError, match="has no mask"):
        run("--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_from_the_command_line_with_names_that_no_terminal_can_show(run: Any, weights: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    for name in ("line\nend.jpg", "\x1b[2J.jpg", os.fsdecode(b"latin\xe9.jpg"), "кот.jpg", "n" * 240 + ".jpg"):
        (photos / name).write_bytes((photos / "0.jpg").read_bytes())
    (photos / "torn\x07.jpg").write_bytes(b"torn")
    command = [sys.executable, str(ROOT / "predict.py"), *arguments(weights, tmp_path, "--html")[1:]]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "6 images segmented" in done.stdout
    assert done.stderr.count("\n") == 2 and "torn\\x07.jpg" in done.stderr
    written = [path.name for path in (tmp_path / "out").rglob("*")]
    assert len([name for name in written if name.endswith(".png")]) == 6 and all(map(str.isprintable, written))
    assert run() == 1 and len({record["file"] for record in manifest(tmp_path)}) == 6


def test_folders_that_will_not_do(run: Any, support: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    with pytest.raises(UserError, match="within the support folder"):
        run("--out", support / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: File exists; fix that, then run the same command again"):
        run("--out", tmp_path / "file")
    for wrong in (["--batch", 0], ["--tile", 0], ["--page", 0], ["--overlap", 0.3]):
        with pytest.raises(UserError, match=f"{wrong[0]} {wrong[1]}: "):
            run(*wrong)

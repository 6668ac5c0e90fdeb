"""A data set of one's own: lists, folds, config; and that the index reads it."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.benchmarks.table import open_benchmark
from dataset.index import load_index
from dataset.prepare.custom import choose_val
from prediction.support import read_support
from tests.dataset.prepare.test_pascal import stamps
from tests.dataset.prepare.trees import random_label, write_jpeg, write_lines, write_palette_png
from tools.prepare import main
from util.config import load_config
from util.errors import UserError

Labels = dict[str, np.ndarray]
CLASSES = 6


@pytest.fixture
def labels(tmp_path: Path, rng: np.random.Generator) -> Labels:
    """A folder in the VOC layout, tmp_path/src: six classes, each the largest in five images."""
    labels = {}
    for number in range(5 * CLASSES):
        name = f"image {number}"
        labels[name] = random_label(rng, [number % CLASSES + 1, *rng.integers(1, CLASSES + 1, 1)])
        write_jpeg(tmp_path / f"src/JPEGImages/{name}.jpg", rng)
        write_palette_png(tmp_path / f"src/SegmentationClass/{name}.png", labels[name])
    return labels


def make(tmp_path: Path, *words: str) -> Path:
    assert main(["custom", str(tmp_path / "src"), "--out", str(tmp_path / "own"), "--workers", "1", *words]) == 0
    return tmp_path / "own"


def test_the_index_reads_it(labels: Labels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make(tmp_path, "--folds", "3")
    cfg = load_config(out / "config.yaml")
    assert (cfg.data_set, cfg.num_classes, cfg.folds) == ("own", CLASSES, 3)
    assert cfg.area_threshold == round(2048 * 9000 / 187500)
    assert cfg.max_side == 501  # VOC's images have 500, its crop 473
    assert open_benchmark(cfg).names() == {value: f"class_{value}" for value in range(1, CLASSES + 1)}
    for split in range(3):
        index, files = load_index(cfg.model_copy(update={"split": split}), "val")
        assert list(index.by_class) == [2 * split + 1, 2 * split + 2]
        assert min(len(images) for images in index.by_class.values()) >= 2
        for image, mask in files.values():
            name = image.stem.replace("_", " ")
            np.testing.assert_array_equal(np.array(Image.open(mask)), labels[name])
            assert image.read_bytes() == (tmp_path / f"src/JPEGImages/{name}.jpg").read_bytes()
    text = capsys.readouterr().out
    assert (out / "config.yaml").read_text() in text
    assert "too few" not in text


def test_second_run_changes_nothing_and_follows_the_source(labels: Labels, tmp_path: Path) -> None:
    out = make(tmp_path)
    before = stamps(out)
    make(tmp_path)
    assert stamps(out) == before
    label = labels["image 3"].copy()
    label[:5] = 4  # more of a class that it has: the lists stay
    write_palette_png(tmp_path / "src/SegmentationClass/image 3.png", label)
    (out / "SegmentationClassAug/image_7.png").unlink()
    cut = out / "JPEGImages/image_9.jpg"
    cut.write_bytes(cut.read_bytes()[:-9])
    make(tmp_path)
    changed = {path.name for path, stamp in stamps(out).items() if before.get(path) != stamp and path.is_file()}
    assert changed == {"image_3.png", "image_7.png"}
    assert cut.read_bytes() == (tmp_path / "src/JPEGImages/image 9.jpg").read_bytes()  # with the time of the source
    np.testing.assert_array_equal(np.array(Image.open(out / "SegmentationClassAug/image_3.png")), label)


def test_keeps_the_sources_own_lists(labels: Labels, tmp_path: Path) -> None:
    names = list(labels)
    write_lines(tmp_path / "src/ImageSets/Segmentation/train.txt", names[:4])
    write_lines(tmp_path / "src/ImageSets/Segmentation/val.txt", names[4:9])
    out = make(tmp_path)
    for part, expected in (("train", names[:4]), ("val", names[4:9])):
        lines = (out / f"ImageSets/{part}.txt").read_text().splitlines()
        assert [Path(line.split()[0]).stem.replace("_", " ") for line in lines] == expected


def test_files_at_fault_are_named(labels: Labels, tmp_path: Path) -> None:
    cut = tmp_path / "src/JPEGImages/image 4.jpg"
    cut.write_bytes(cut.read_bytes()[:-50])
    write_palette_png(tmp_path / "src/SegmentationClass/image 5.png", np.ones((3, 4), np.uint8))
    write_palette_png(tmp_path / "src/SegmentationClass/image 6.png", np.ones((7, 4), np.uint8))
    with pytest.raises(UserError, match="2 images failed .*image 5.jpg is 100x90, its annotation 4x3; make them equal"):
        make(tmp_path)
    assert not (tmp_path / "own").exists()
    for number in (5, 6):
        write_palette_png(tmp_path / f"src/SegmentationClass/image {number}.png", labels["image 5"])
    with pytest.raises(UserError, match=f"{cut}: not a readable image"):
        make(tmp_path)


def test_what_cannot_be_a_data_set(labels: Labels, tmp_path: Path, rng: np.random.Generator) -> None:
    for words, message in (
        (("--out", str(tmp_path / "src")), r"--out .*src is the source itself"),
        (("--name", "coco"), "--name coco is that of an official data set"),
        (("--folds", "7"), "--folds 7: from 2 to 6"),
        (("--area-threshold", "0"), "--area-threshold 0: should be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            make(tmp_path, *words)
    write_jpeg(tmp_path / "src/JPEGImages/image_3.jpg", rng)
    write_palette_png(tmp_path / "src/SegmentationClass/image_3.png", random_label(rng, [1]))
    with pytest.raises(UserError, match=r"image_3.jpg and .*image 3.jpg would both become image_3"):
        make(tmp_path)
    for mask in (tmp_path / "src/SegmentationClass").iterdir():
        write_palette_png(mask, np.ones((90, 100), np.uint8))
    with pytest.raises(UserError, match="has 1 class; training needs two"):
        make(tmp_path)


def test_validation_share(rng: np.random.Generator) -> None:
    """Every class gets its share, at least two where it can spare them, and names alone decide."""
    present = {
        f"{i}": {int(rng.integers(1, 9))} | ({9} if i < 3 else set()) | ({10} if i < 5 else set()) for i in range(400)
    }
    val = choose_val(present, 0.25)
    shuffled = {name: present[name] for name in rng.permutation(list(present)).tolist()}
    assert choose_val(shuffled, 0.25) == val
    for value in range(1, 11):
        members = [name for name, classes in present.items() if value in classes]
        chosen = sum(name in val for name in members)
        assert chosen >= max(2, round(0.25 * len(members))) or value == 9  # which has three images only
        assert len(members) - chosen >= 2
    assert len(val) < 0.3 * len(present)


def squares(folder: Path, rng: np.random.Generator, side: int, count: int = 4) -> None:
    """Images and masks of one square of one of two classes, in the VOC layout."""
    for number in range(2 * count):
        write_jpeg(folder / f"JPEGImages/{number}.jpg", rng)
        label = np.zeros((90, 100), np.uint8)
        top, left = rng.integers(0, 90 - side, 2)
        label[top : top + side, left : left + side] = number % 2 + 1
        write_palette_png(folder / f"SegmentationClass/{number}.png", label)


@pytest.mark.parametrize(("side", "threshold"), [(3, 9), (6, 36), (40, 98)])
def test_a_threshold_that_the_objects_reach(
    tmp_path: Path, rng: np.random.Generator, side: int, threshold: int
) -> None:
    squares(tmp_path / "src", rng, side)
    out = make(tmp_path)
    assert load_config(out / "config.yaml").area_threshold == threshold
    assert all((out / f"ImageSets/{part}.txt").read_text().count("\n") == 4 for part in ("train", "val"))


def test_a_threshold_of_ones_own(tmp_path: Path, rng: np.random.Generator) -> None:
    squares(tmp_path / "src", rng, 10)
    assert load_config(make(tmp_path, "--area-threshold", "77") / "config.yaml").area_threshold == 77
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(UserError, match="no image of the train list has a class of 101 pixels; give a lower --area"):
        make(tmp_path, "--area-threshold", "101")
    assert not (tmp_path / "own").exists()


def test_too_few_images_to_divide(tmp_path: Path, rng: np.random.Generator) -> None:
    squares(tmp_path / "src", rng, 20, count=2)
    with pytest.warns(UserWarning, match="each is in both lists"):
        out = make(tmp_path)
    assert (out / "ImageSets/train.txt").read_text() == (out / "ImageSets/val.txt").read_text()
    assert main(["check", "--config", str(out / "config.yaml"), "--workers", "1"]) == 0


def test_images_are_known_by_their_content(tmp_path: Path, rng: np.random.Generator) -> None:
    squares(tmp_path / "src", rng, 20)
    image = tmp_path / "src/JPEGImages/0.jpg"
    pixels = rng.integers(0, 256, (2, 90, 100, 3), dtype=np.uint8)
    image.unlink()
    for photograph in pixels:
        Image.fromarray(photograph).save(image.with_suffix(".bmp"))
        os.utime(image.with_suffix(".bmp"), (0, 0))
        out = make(tmp_path)
        np.testing.assert_array_equal(np.asarray(Image.open(out / "JPEGImages/0.bmp")), photograph)


@pytest.mark.parametrize("in_folders", [True, False])
def test_what_predict_takes(tmp_path: Path, rng: np.random.Generator, in_folders: bool) -> None:
    """Images with masks of 0 and 255 beside them: a folder for each class, or one folder of a single class."""
    drawn = {}
    for number in range(8):
        folder = tmp_path / "src" / (("cat", "dog")[number % 2] if in_folders else "")
        mask = np.zeros((90, 100), np.uint8)
        mask[: 20 + 5 * number, 10:60] = 255
        write_jpeg(folder / f"{number}.jpg", rng)
        Image.fromarray(mask).save(folder / f"{number}.png")
        drawn[str(number)] = np.where(mask > 0, number % 2 + 1, 0)
    shown = {item.name: len(item.images) for item in read_support(tmp_path / "src")}
    if not in_folders:
        assert shown == {"object": 8}
        with pytest.raises(UserError, match=r"1 class; .*predict.py --support .*src ..., or Predictor.set_support"):
            make(tmp_path)
        return
    assert shown == {"cat": 4, "dog": 4}
    out = make(tmp_path)
    for path in (out / "SegmentationClassAug").rglob("*.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), drawn[path.stem])
    assert open_benchmark(load_config(out / "config.yaml")).names() == {1: "cat", 2: "dog"}


def test_layouts_of_one_object_are_taken_by_predict(tmp_path: Path, rng: np.random.Generator) -> None:
    squares(tmp_path / "src", rng, 20, count=2)
    for path in (tmp_path / "src/SegmentationClass").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    with pytest.raises(UserError, match="has 1 class; training needs two at least"):
        make(tmp_path)
    assert not (tmp_path / "own").exists()
    (only,) = read_support(tmp_path / "src")
    assert only.name == "object" and [int(mask.sum()) for mask in only.masks] == [400] * 4

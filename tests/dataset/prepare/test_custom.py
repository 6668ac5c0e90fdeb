"""A data set of one's own: lists, folds, config; and that the index reads it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.benchmarks.table import open_benchmark
from dataset.index import load_index
from dataset.prepare.custom import choose_val, prepare_custom
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
    names = [f"image_{number}" for number in range(30)]
    for name in names:
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            path = tmp_path / f"src/{folder}/{name.replace('_', ' ')}.{suffix}"
            path.rename(path.with_name(f"{name}.{suffix}"))
    write_lines(tmp_path / "src/ImageSets/Segmentation/train.txt", names[:4])
    write_lines(tmp_path / "src/ImageSets/Segmentation/val.txt", names[4:9])
    lists = make(tmp_path) / "ImageSets"
    assert [Path(line.split()[0]).stem for line in (lists / "train.txt").read_text().splitlines()] == names[:4]
    assert [Path(line.split()[0]).stem for line in (lists / "val.txt").read_text().splitlines()] == names[4:9]


def test_files_at_fault_are_named(labels: Labels, tmp_path: Path) -> None:
    cut = tmp_path / "src/JPEGImages/image 4.jpg"
    cut.write_bytes(cut.read_bytes()[:-50])
    write_palette_png(tmp_path / "src/SegmentationClass/image 5.png", np.ones((3, 4), np.uint8))
    write_palette_png(tmp_path / "src/SegmentationClass/image 6.png", np.ones((7, 4), np.uint8))
    with pytest.raises(UserError, match=r"image 5.jpg is 100x90, its annotation 4x3; .* \(1 more files are like that"):
        make(tmp_path)
    assert not (tmp_path / "own").exists()
    for number in (5, 6):
        write_palette_png(tmp_path / f"src/SegmentationClass/image {number}.png", labels["image 5"])
    with pytest.raises(UserError, match=f"{cut}: not a readable image"):
        make(tmp_path)


def test_what_cannot_be_a_data_set(labels: Labels, tmp_path: Path, rng: np.random.Generator) -> None:
    def attempt(**changes: object) -> None:
        settings = {
            "name": "own",
            "folds": None,
            "val_share": 0.2,
            "images": None,
            "workers": 1,
            "out": tmp_path / "own",
        }
        prepare_custom(tmp_path / "src", **(settings | changes))  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"--out .*src is the source itself"):
        attempt(out=tmp_path / "src")
    with pytest.raises(UserError, match="--name coco is that of an official data set"):
        attempt(name="coco")
    with pytest.raises(UserError, match="--folds 7: from 2 to 6"):
        attempt(folds=7)
    write_jpeg(tmp_path / "src/JPEGImages/image_3.jpg", rng)
    write_palette_png(tmp_path / "src/SegmentationClass/image_3.png", random_label(rng, [1]))
    with pytest.raises(UserError, match=r"image_3.jpg and .*image 3.jpg would both become image_3"):
        attempt()
    for mask in (tmp_path / "src/SegmentationClass").iterdir():
        write_palette_png(mask, np.ones((90, 100), np.uint8))
    with pytest.raises(UserError, match="has 1 class; training needs two"):
        attempt()


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

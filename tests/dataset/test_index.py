"""The index: folds, class files, lists, which images count, the scan's cache, released lists, mistakes."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import dataset.scan
from dataset.benchmarks.coco import COCO_CLASSES
from dataset.benchmarks.pascal import PASCAL_CLASSES
from dataset.benchmarks.table import open_benchmark
from dataset.index import ImageIndex, Mode, load_index, validation_count
from dataset.scan import counts_folder, scan_masks
from util.config import Config
from util.errors import UserError
from util.folds import fold_classes

MakeConfig = Callable[..., Config]


def brute_force(root: Path, mode: str, wanted: list[int], threshold: int) -> ImageIndex:
    """The rules of the index applied mask by mask."""
    index = ImageIndex([], {}, {class_id: [] for class_id in wanted})
    for line in (root / "ImageSets" / f"{mode}.txt").read_text().splitlines():
        image, mask_name = line.split()
        mask = np.array(Image.open(root / mask_name))
        present = sorted(set(np.unique(mask).tolist()) - {0, 255})
        counting = [c for c in present if c in wanted and (mask == c).sum() >= threshold]
        if counting and (mode == "val" or set(present) <= set(wanted)):
            index.images.append(image)
            index.classes[image] = present
            for class_id in counting:
                index.by_class[class_id].append(image)
    return index


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The masks that have been read, as they are read."""
    read: list[str] = []
    original = dataset.scan.count_classes

    def recorded(path: Path) -> dict[int, int]:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(dataset.scan, "count_classes", recorded)
    return read


def test_class_names(toy_root: Path, toy_config: MakeConfig) -> None:
    assert (len(PASCAL_CLASSES), len(COCO_CLASSES), len(set(COCO_CLASSES))) == (20, 80, 80)
    assert (PASCAL_CLASSES[14], COCO_CLASSES[0], COCO_CLASSES[79]) == ("person", "person", "toothbrush")
    assert open_benchmark(toy_config(toy_root)).names()[3] == "thing 3"
    assert open_benchmark(toy_config(toy_root, data_set="pascal", num_classes=20)).names()[20] == "tvmonitor"
    for text, count, message in (
        (None, 7, r"num_classes: 7, but .*classes\.txt has classes 1\.\.8"),
        ("1 cat\nsecond dog\n", 4, r"classes\.txt:2: "),
    ):
        if text:
            (toy_root / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            open_benchmark(toy_config(toy_root, num_classes=count)).names()
    (toy_root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes\.txt: no readable class file"):
        open_benchmark(toy_config(toy_root)).names()


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("split", [0, 3])
def test_index_follows_the_rules(toy_root: Path, toy_config: MakeConfig, mode: Mode, split: int) -> None:
    base, novel = fold_classes("toy", split, 8, 4, False)
    for threshold in (100, 1, 300):
        index, files = load_index(toy_config(toy_root, split=split, area_threshold=threshold), mode)
        assert index == brute_force(toy_root, mode, base if mode == "train" else novel, threshold)
        assert list(files) == index.images and all(image.is_file() and mask.is_file() for image, mask in files.values())


def test_base_classes_are_tested_on_validation_images_without_novel_ones(
    toy_root: Path, toy_config: MakeConfig
) -> None:
    index, _ = load_index(toy_config(toy_root, split=1, test_classes="base", ensemble=False), "val")
    base, _ = fold_classes("toy", 1, 8, 4, False)
    counts = brute_force(toy_root, "val", base, 100)
    expected = [image for image in counts.images if set(counts.classes[image]) <= set(base)]
    assert index.images == expected and sorted(index.by_class) == base
    with pytest.raises(UserError, match="test_classes: 'base' should be novel with ensemble True"):
        toy_config(toy_root, test_classes="base")


def test_rare_classes_are_left_out(toy_root: Path, toy_config: MakeConfig) -> None:
    whole, files = load_index(toy_config(toy_root, folds=2), "val")
    sizes = {class_id: len(images) for class_id, images in whole.by_class.items()}
    least = sorted(sizes.values())[1]
    index, kept = load_index(toy_config(toy_root, folds=2, min_class_images=least), "val")
    assert index.by_class == {c: images for c, images in whole.by_class.items() if sizes[c] >= least}
    assert index.images == [
        image for image in whole.images if any(image in images for images in index.by_class.values())
    ]
    assert index.classes == whole.classes and kept == files
    with pytest.raises(UserError, match="min_class_images: no class has 1000 images"):
        load_index(toy_config(toy_root, min_class_images=1000), "val")


def test_masks_are_read_once_for_all_folds_and_thresholds(
    toy_root: Path, toy_config: MakeConfig, scanned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    load_index(toy_config(toy_root), "val")
    assert len(scanned) == 60 and [path.name[:4] for path in counts_folder().iterdir()] == ["val-"]
    assert not list(toy_root.rglob(".*"))  # nothing is left in the data
    assert capsys.readouterr().err.count(f"kept in {counts_folder()}") == 1
    load_index(toy_config(toy_root, split=2, area_threshold=7), "val")
    load_index(toy_config(toy_root, split=2), "train")
    assert len(scanned) == 150 and "kept in" not in capsys.readouterr().err


def test_changed_masks_and_lists_are_noticed(toy_root: Path, toy_config: MakeConfig, scanned: list[str]) -> None:
    cfg = toy_config(toy_root)
    load_index(cfg, "val")
    scanned.clear()
    mask = toy_root / "SegmentationClassAug" / "val007.png"
    cv2.imwrite(str(mask), np.full((40, 40), 2, np.uint8))
    list_file = toy_root / "ImageSets" / "val.txt"
    list_file.write_text("JPEGImages/train000.jpg SegmentationClassAug/train000.png\n" + list_file.read_text())
    index, _ = load_index(cfg, "val")
    assert sorted(scanned) == ["train000.png", "val007.png"]
    assert index == brute_force(toy_root, "val", [1, 2], 100) and index.classes["JPEGImages/val007.jpg"] == [2]
    stamp = mask.stat()
    os.utime(mask, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    scanned.clear()
    load_index(cfg, "val")
    assert scanned == ["val007.png"]


def test_broken_cache_is_scanned_anew(toy_root: Path, toy_config: MakeConfig) -> None:
    cfg = toy_config(toy_root)
    expected = load_index(cfg, "val")
    (cache,) = counts_folder().iterdir()
    for content in ("", "{", '{"version": 0, "masks": {}}', "[]", '{"version": 1, "masks": {"a": 3}}', "\udcff"):
        cache.write_text(content, errors="surrogateescape")
        assert load_index(cfg, "val") == expected


def test_without_a_cache_folder_masks_are_scanned_every_time(
    toy_root: Path, tmp_path: Path, toy_config: MakeConfig, scanned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder can be made here")
    for times in (1, 2):
        load_index(toy_config(toy_root), "val")
        assert len(scanned) == 60 * times and caplog.text.count("masks will be scanned again") == times


def test_benchmarks_are_opened_once_for_equal_configs(toy_root: Path, toy_config: MakeConfig) -> None:
    first = open_benchmark(toy_config(toy_root))
    assert open_benchmark(toy_config(toy_root)) is first
    assert open_benchmark(toy_config(toy_root, split=1)) is not first


def test_number_of_validation_episodes(toy_root: Path, toy_config: MakeConfig) -> None:
    index, _ = load_index(toy_config(toy_root), "val")
    count = len(index.images)
    assert 5 < count < 50  # far less than would do for 1000 episodes
    assert validation_count(toy_config(toy_root), index) == 10 * count
    assert validation_count(toy_config(toy_root, val_episodes=7), index) == 7
    many = replace(index, images=[str(number) for number in range(3000)])
    assert validation_count(toy_config(toy_root), many) == 1000
    assert validation_count(toy_config(toy_root, data_set="coco", num_classes=80), many) == 4000


def test_pool_of_processes_counts_the_same(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [f"SegmentationClassAug/train{number:03d}.png" for number in range(90)]
    alone = scan_masks(toy_root, masks, Path("alone.txt"))
    monkeypatch.setattr(dataset.scan, "POOL_FROM", 10)
    assert scan_masks(toy_root, masks, Path("pooled.txt")) == alone
    (toy_root / masks[50]).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train050\.png: not a readable mask"):
        scan_masks(toy_root, masks, Path("broken.txt"))


@pytest.mark.parametrize("prefix", ["../data/VOCdevkit2012/VOC2012/", "", "./data/", "/home/somebody/VOC2012/"])
def test_released_lists_are_rerooted(toy_root: Path, toy_config: MakeConfig, prefix: str) -> None:
    cfg = toy_config(toy_root, split=1, released_lists="lists")
    expected, files = load_index(toy_config(toy_root, split=1), "val")
    write_released(toy_root, expected, prefix)
    assert load_index(cfg, "val") == (expected, files)


def write_released(root: Path, index: ImageIndex, prefix: str) -> Path:
    folder = root / "lists" / "val"
    folder.mkdir(parents=True, exist_ok=True)

    def pair(image: str) -> tuple[str, str]:
        return prefix + image, prefix + image.replace("JPEGImages", "SegmentationClassAug").replace("jpg", "png")

    (folder / "data_list_1.txt").write_text("".join("{} {}\n".format(*pair(image)) for image in index.images))
    classes = {class_id: [pair(image) for image in images] for class_id, images in index.by_class.items()}
    (folder / "sub_class_file_list_1.txt").write_text(str(classes))
    return folder / "sub_class_file_list_1.txt"


def test_broken_released_lists_are_errors_and_never_run(toy_root: Path, tmp_path: Path, toy_config: MakeConfig) -> None:
    index, _ = load_index(toy_config(toy_root, split=1), "val")
    class_list = write_released(toy_root, index, "../data/")
    cfg = toy_config(toy_root, split=1, released_lists="lists")
    trap = tmp_path / "trap"
    good = class_list.read_text()
    for text, message in [
        (f"open({str(trap)!r}, 'w')", "not a dict"),
        ("{3: 5}", "not a dict"),
        (good[:-3], "not a dict"),
        ("{1: [], 2: []}", r"has classes 1\.\.2, this fold 3\.\.4"),
        (good.replace("../data/", "elsewhere/", 1), "do not begin with"),
        (good.replace("val", "other", 1), "does not; fetch both"),
        (re.sub(r"(\('[^)]*\))", r"\1, \1", good, count=1), "an image twice"),
    ]:
        class_list.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            load_index(cfg, "val")
        assert str(class_list) in str(error.value)
    assert not trap.exists()
    with pytest.raises(UserError, match=r"data_list_0\.txt: no readable list file"):
        load_index(toy_config(toy_root, released_lists="lists"), "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a b c", r"val\.txt:61: not `image mask`"),
        ("JPEGImages/val003.jpg m.png", r"val\.txt:61: JPEGImages/val003\.jpg is listed twice"),
        (
            "JPEGImages/no.jpg SegmentationClassAug/val000.png",
            r"JPEGImages/no\.jpg: no such image, named in .*val\.txt",
        ),
        ("No/no.jpg SegmentationClassAug/val000.png", r"No/no\.jpg: no such image"),
        ("JPEGImages/train000.jpg no.png", r"no\.png: no such mask, named in .*val\.txt"),
        ("JPEGImages/train000.jpg JPEGImages/train000.jpg", r"train000\.jpg: mask holds RGB pixels"),
    ],
)
def test_mistakes_in_lists_are_named(toy_root: Path, toy_config: MakeConfig, line: str, message: str) -> None:
    with (toy_root / "ImageSets" / "val.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=message):
        load_index(toy_config(toy_root, area_threshold=1), "val")


def test_other_mistakes_are_named(toy_root: Path, toy_config: MakeConfig) -> None:
    mask = toy_root / "SegmentationClassAug" / "val001.png"
    for cfg, path, content, message in (
        (toy_config(toy_root / "absent"), None, b"", r"data_root: .*absent is no folder"),
        (toy_config(toy_root, val_list="absent.txt"), None, b"", r"absent\.txt: no readable list file"),
        (toy_config(toy_root, area_threshold=10**6), None, b"", r"no image for classes 1\.\.2; check"),
        (toy_config(toy_root), mask, cv2.imencode(".png", np.full((9, 9), 9, np.uint8))[1].tobytes(), "holds class 9"),
        (toy_config(toy_root), toy_root / "ImageSets" / "val.txt", b"\n\n", r"val\.txt: the list file is empty"),
    ):
        if path:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_index(cfg, "val")

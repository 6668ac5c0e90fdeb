"""MSRC v2 from its published form to folds, and its images among VOC's."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dataset.benchmarks.mixed import Mixed
from dataset.benchmarks.msrc import MSRC_CLASSES
from dataset.benchmarks.table import open_benchmark
from dataset.dataset import TrainingEpisodes
from dataset.index import load_index
from tests.dataset.conftest import MakeConfig
from tests.dataset.prepare.trees import pack
from tests.toy import generator
from tools.prepare import main as prepare

# Colours as the data set's own read-me lists them: grass, cow, mountain, face, road.
COLOURS = {2: (0, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0), 11: (192, 128, 0), 19: (128, 64, 128)}
SIZE = (60, 64)


def write_pair(image: Path, mask: Path, label: NDArray[np.uint8]) -> None:
    for path, pixels in ((image, generator().integers(0, 256, (*SIZE, 3)).astype(np.uint8)), (mask, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def msrc(tmp_path: Path) -> tuple[Path, dict[str, NDArray[np.uint8]]]:
    """What prepare makes of 20 bitmaps with two classes each and a border that is unlabelled; labels by image."""
    labels = {}
    for i in range(1, 21):
        label = np.full(SIZE, 255, np.uint8)
        label[2:58, 2:32], label[2:58, 32:62] = (list(COLOURS)[(i + k) % 5] for k in (0, 1))
        coloured = np.zeros((*SIZE, 3), np.uint8)
        for value, colour in COLOURS.items():
            coloured[label == value] = colour
        name = f"3_{i}_s"
        write_pair(tmp_path / f"raw/v2/Images/{name}.bmp", tmp_path / f"raw/v2/GroundTruth/{name}_GT.bmp", coloured)
        labels[f"JPEGImages/{name}.bmp"] = label
    pack(tmp_path / "archives/msrc.zip", tmp_path / "raw")
    root = tmp_path / "msrc"
    arguments = ["msrc", "--archives", str(tmp_path / "archives"), "--root", str(root), "--workers", "1"]
    assert prepare(arguments) == 1  # counts are not the published ones
    return root, labels


def test_folds_of_msrc(msrc: tuple[Path, dict[str, NDArray[np.uint8]]], toy_config: MakeConfig) -> None:
    root, labels = msrc
    keys = {"data_set": "msrc", "num_classes": 23, "ensemble": False}
    benchmarks = [open_benchmark(toy_config(root, **keys, split=fold)) for fold in range(4)]
    names = [[MSRC_CLASSES[value - 1] for value in each.wanted("test")] for each in benchmarks]
    assert names[0] == ["building", "grass", "tree", "cow", "sheep", "sky"]
    assert names[3] == ["road", "cat", "dog", "body", "boat"] and sum(map(len, names)) == 22
    lists = {part: load_index(toy_config(root, **keys), part)[0].images for part in ("train", "val")}
    assert lists["train"] and lists["val"] and not set(lists["train"]) & set(lists["val"])
    index, files = load_index(toy_config(root, **keys), "val")
    assert [value for value, images in index.by_class.items() if images] == [2, 4]
    for name in index.images:
        for value in index.by_class:
            expected = np.where(labels[name] == 255, 255, labels[name] == value)
            np.testing.assert_array_equal(files.read(name, value), expected)
    index, files = load_index(toy_config(root, **keys), "train")
    for name in index.images:
        for value in index.by_class:
            hidden = np.isin(labels[name], (2, 4, 255))
            np.testing.assert_array_equal(files.read(name, value), np.where(hidden, 255, labels[name] == value))


def test_mixed_draws_from_both_in_turn(
    msrc: tuple[Path, dict[str, NDArray[np.uint8]]], toy_config: MakeConfig, tmp_path: Path
) -> None:
    root, labels = msrc
    voc, lines = tmp_path / "voc", []
    for i in range(12):  # three cows, horses, people and aeroplanes each
        label = np.zeros(SIZE, np.uint8)
        label[5:40, 5:40] = (10, 13, 15, 1)[i % 4]
        write_pair(voc / f"JPEGImages/v{i}.jpg", voc / f"SegmentationClassAug/v{i}.png", label)
        lines.append(f"JPEGImages/v{i}.jpg SegmentationClassAug/v{i}.png\n")
    (voc / "ImageSets").mkdir()
    (voc / "ImageSets/train.txt").write_text("".join(lines))
    keys = {"data_set": "mixed", "num_classes": 20, "mixed_root": root, "balanced_queries": True, "split": 0}
    keys |= {"train_h": 33, "train_w": 33, "absent_queries": 0.3, "ensemble": False}
    cfg = toy_config(voc, **keys)
    index, files = load_index(cfg, "train")
    names, classes = Mixed(cfg).names(), Mixed(cfg).wanted("train")
    assert not {"aeroplane", "face", "tree", "sign"} & {names[value] for value in classes}
    assert {"cow", "grass", "mountain", "road", "person"} <= {names[value] for value in classes}
    road = next(value for value in classes if names[value] == "road")
    face = next(name for name in index.images if name in labels and {11, 19} <= set(np.unique(labels[name])))
    np.testing.assert_array_equal(files.read(face, road) == 255, np.isin(labels[face], (11, 255)))
    dataset = TrainingEpisodes(cfg, index, files, classes, 0, 1)
    drawn: dict[str, int] = {}
    for epoch in range(8):
        dataset.epoch = epoch
        for number in range(len(dataset)):
            item = dataset[number]
            assert {name in labels for name in item["names"]} == {bool(number % 2)}
            name = f"{number % 2} {names[item['class_id']]}"
            drawn[name] = drawn.get(name, 0) + 1
            shown = item["class_id"] in index.classes[item["names"][0]]
            assert shown or not (item["query_mask"] == 1).any()
    assert drawn.keys() == {"0 cow", "0 horse", "0 person", "1 cow", "1 grass", "1 mountain", "1 road"}
    assert min(drawn.values()) * 4 > max(drawn.values())


def test_crops_of_other_hidden_classes_are_others(toy_config: MakeConfig, msrc: tuple[Path, dict]) -> None:
    keys = {"data_set": "msrc", "num_classes": 23}
    rules = {load_index(toy_config(msrc[0], **keys, split=fold), "train")[1].mask_rule("") for fold in (0, 1)}
    assert len(rules) == 2

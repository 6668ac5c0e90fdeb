"""Every benchmark from archives in its real form to masks, episodes and a test's result."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from dataset.benchmarks import lvis92i
from dataset.benchmarks.table import BENCHMARKS, open_benchmark, test_config
from dataset.dataset import TrainingEpisodes
from dataset.index import load_index
from dataset.lists import read_pickle
from dataset.multiclass import MultiEpisodes, draw_ways
from dataset.transform import squash_mask
from engine.multiclass import test_ways as run_ways
from model.build import build_model
from tests.dataset.benchmarks.trees import FOLDS, MAKERS, Truth
from tests.toy import entry_point, generator, toy_config, write_toy, write_weights
from tools.prepare import main as prepare
from util.arguments import evaluation_arguments
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError

test_config.__test__ = False  # type: ignore[attr-defined]


def build(name: str, tmp_path: Path) -> tuple[Truth, Path]:
    """Archives, then what prepare makes of them."""
    root = tmp_path / "root"
    truth = MAKERS[name](tmp_path / "raw", root / "lists", generator())
    assert prepare([name, "--archives", str(tmp_path / "archives"), "--root", str(root), "--workers", "1"]) in (0, 1)
    return truth, root


def run_test(tmp_path: Path, *options: object) -> dict:
    """What test.py writes, with random weights of the toy data's network."""
    words = ["--result", str(tmp_path / "result.json"), "--viz", "2", "--opts", *map(str, options)]
    entry_point("test").main(evaluation_arguments(["--config", str(tmp_path / "toy.yaml"), *words]))
    return json.loads((tmp_path / "result.json").read_text())


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The toy experiment, with weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cfg = toy_config(tmp_path, test_episodes="", area_threshold=200)
    (tmp_path / "toy.yaml").write_text(cfg.to_yaml())
    write_toy(tmp_path / "toy")
    write_weights(cfg)
    return cfg


@pytest.mark.parametrize("name", MAKERS)
def test_from_archives_to_a_result(name: str, cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, root = build(name, tmp_path)
    fold = FOLDS.get(name, 0)
    keys = {"test_set": name, "test_root": str(root), "test_fold": fold, "protocol": "hsnet"}
    tested = test_config(cfg.model_copy(update=keys))
    index, files = load_index(tested, "test")
    objects = index.objects
    listed = {(n, c) for (c, i), found in objects.items() for n in found if n} if objects else None
    listed = listed or {(image, c) for c, images in index.by_class.items() for image in images}
    assert listed == truth.keys()
    for (image, class_id), mask in truth.items():
        np.testing.assert_array_equal(files.read(image, class_id), mask)
        assert files.image(image).shape[:2] == mask.shape == files.size(image)
    options = [word for pair in keys.items() for word in pair]
    content = run_test(tmp_path, *options, "test_episodes", 12, "metric_size", "")
    assert len(content["results"][0]["episode_iou"]) == 12
    assert sum(path.is_dir() and len(list(path.iterdir())) == 2 for path in tmp_path.glob("panels_*")) == 1
    about = content["test"]
    assert (about["set"], about["fold"], about["protocol"], about["metric_size"]) == (name, fold, "hsnet", "input")
    names, printed = open_benchmark(tested).names(), capsys.readouterr().out
    assert set(map(int, content["results"][0]["class_iou"])) == set(open_benchmark(tested).wanted("test"))
    assert all(names[int(c)] in printed for c in content["results"][0]["class_iou"])
    assert "train_list filtered" in printed and all(f"note: {note}" in printed for note in about["notes"])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    prepare([name, "--root", str(root), "--workers", "1"])  # again, without the archives
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_training_on_classes_of_their_own(tmp_path: Path) -> None:
    """FSS-1000 has other classes for training and validation than for testing."""
    truth, root = build("fss1000", tmp_path)
    (root / "lists/fss/trn.txt").write_text("zebra\nox_cart\n")
    (root / "lists/fss/val.txt").write_text("abe's_flyingfish\n")
    cfg = toy_config(tmp_path, data_set="fss1000", data_root=root, ensemble=False)
    index, files = load_index(cfg, "train")
    classes = open_benchmark(cfg).wanted("train")
    assert len(index.images) == 20 and sorted(index.by_class) == classes and not set(classes) & {1, 2, 3}
    item = TrainingEpisodes(cfg, index, files, classes, 1, 0)[3]
    assert item["class_index"] in (0, 1) and (item["query_mask"] == 1).any()
    names = open_benchmark(cfg).names()
    assert names[classes[0]] == "ox_cart" and list(load_index(cfg, "val")[0].by_class) == open_benchmark(cfg).wanted(
        "val"
    )
    with pytest.raises(UserError, match="fss1000 has no index masks for a base learner; set ensemble False"):
        open_benchmark(cfg).base_files("train")
    assert len(truth) == 30


@pytest.mark.parametrize("name", ["fss1000", "suim", "lvis92i"])
def test_ways_where_every_class_has_a_mask_of_its_own(name: str, cfg: Config, tmp_path: Path) -> None:
    truth, root = build(name, tmp_path)
    place = {"test_set": name, "test_root": str(root), "test_fold": FOLDS.get(name, 0)}
    tested = cfg.model_copy(update={**place, "seeds": [3], "test_episodes": 4})
    index, files = load_index(test_config(tested), "test")
    episodes = draw_ways(index.classes, list(index.by_class), 2, 1, 4, 3, label_all=True)
    dataset = MultiEpisodes(episodes, index.classes, files, 33, "square")
    for number, episode in enumerate(episodes):
        expected = np.zeros_like(truth[episode.query, index.classes[episode.query][0]])
        for class_id in index.classes[episode.query]:
            label = next((label for label, c in episode.labels.items() if c == class_id), 0)
            expected[truth[episode.query, class_id] == 1] = label
        np.testing.assert_array_equal(dataset[number]["truth"], squash_mask(expected, 33, 33))
    result = run_ways(build_model(cfg, pretrained=False), tested, ProcessGroup(torch.device("cpu")), 2)
    assert set(result["runs"][0]["class_iou"]) == set(index.by_class)


def test_annotations_are_read_once(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, root = build("lvis92i", tmp_path)
    counted = Mock(side_effect=read_pickle)
    monkeypatch.setattr(lvis92i, "read_pickle", counted)
    place = ("test_set", "lvis92i", "test_root", root, "test_fold", 1)
    run_test(tmp_path, *place, "protocol", "hsnet", "test_episodes", 2, "metric_size", "")
    assert counted.call_count == 1


def test_table_of_names() -> None:
    assert set(MAKERS) | {"pascal", "coco", "coco2pascal", "msrc", "mixed"} == set(BENCHMARKS)


def test_mistakes_are_one_line(tmp_path: Path, cfg: Config) -> None:
    with pytest.raises(UserError, match=r"is no folder; give --archives"):
        prepare(["suim", "--root", str(tmp_path / "root")])
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: no archive there"):
        prepare(["suim", "--root", str(tmp_path / "root"), "--archives", str(tmp_path / "none")])
    MAKERS["chest_xray"](tmp_path / "raw", tmp_path / "lists", generator())
    with pytest.raises(UserError, match=r"lung.zip: holds no file of suim"):
        prepare(["suim", "--root", str(tmp_path / "root"), "--archives", str(tmp_path / "archives/lung.zip")])
    for keys, message in (
        ({"test_set": "unknown"}, "test_set: 'unknown' is unknown; choose pascal"),
        ({"test_set": "isic2018", "variant": "x"}, "variant: 'x' is no variant of isic2018; choose: patnet, ifa"),
        ({"test_set": "paco_part", "protocol": "hsnet"}, "paco_part_train.pkl is missing"),
        ({"test_set": "pascal_part"}, "protocol: released draws images, but pascal_part has objects"),
    ):
        with pytest.raises(UserError, match=message):
            load_index(test_config(cfg.model_copy(update={"test_root": str(tmp_path), **keys})), "test")

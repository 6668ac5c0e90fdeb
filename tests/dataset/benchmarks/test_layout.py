"""Sets in list files of index masks: training lists, public lists, COCO -> PASCAL, PASCAL's fold 4."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.benchmarks.table import open_benchmark, test_config
from dataset.dataset import EvaluationEpisodes
from dataset.episode import Episode
from dataset.index import load_index
from dataset.lists import read_class_lists
from engine.evaluation import make_episodes
from tests.toy import ROOT, toy_config, write_toy
from util.config import Config, load_config
from util.errors import UserError

test_config.__test__ = False  # type: ignore[attr-defined]
MakeConfig = Callable[..., Config]
SPLITS = Path(__file__).resolve().parents[4] / "shared/spec/splits"
needs_lists = pytest.mark.skipif(not SPLITS.is_dir(), reason="the public lists are not at hand")


def masks_of(root: Path, part: str) -> dict[str, np.ndarray]:
    lines = (root / f"ImageSets/{part}.txt").read_text().splitlines()
    return {line.split()[0]: np.array(Image.open(root / line.split()[1])) for line in lines}


@pytest.mark.parametrize("kind", ["filtered", "all", "ImageSets/train.txt"])
def test_training_lists(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy")
    cfg = toy_config(tmp_path, train_list=kind, split=1)
    assert cfg.list_kind == ("all" if kind == "all" else "filtered")
    index, files = load_index(cfg, "train")
    masks, base = masks_of(tmp_path / "toy", "train"), set(open_benchmark(cfg).wanted("train"))
    expected = []
    for name, mask in masks.items():
        present = {c for c in range(1, 9) if (mask == c).any()}
        counting = {c for c in present & base if (mask == c).sum() >= cfg.area_threshold}
        if counting and (kind == "all" or present <= base):
            expected.append(name)
    assert index.images == expected and (kind == "all") == (len(expected) > 20)
    name = index.images[0]
    class_id = next(c for c in index.classes[name] if c in base)
    assert set(np.unique(files.read(name, class_id))) <= {0, 1, 255}  # novel pixels are background


@pytest.mark.parametrize("metric_size", ["original", "input"])
def test_metric_size(metric_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy")
    cfg = toy_config(tmp_path, metric_size=metric_size, protocol="seeded")
    index, files = load_index(cfg, "test")
    name, class_id = index.images[0], index.classes[index.images[0]][0]
    other = next(n for n in index.images[1:] if class_id in index.classes[n])
    item = EvaluationEpisodes(cfg, [Episode(name, class_id, [other])], files, [class_id])[0]
    expected = files.read(name, class_id).shape if metric_size == "original" else (33, 33)
    assert tuple(item["query_mask"].shape) == expected


def coco_pascal(**keys: object) -> Config:
    words = [str(word) for pair in {"test_set": "coco2pascal", "protocol": "hsnet", **keys}.items() for word in pair]
    return test_config(load_config(ROOT / "config/base/coco.yaml", words))


def test_conventions_of_coco_to_pascal() -> None:
    # VOC class -> COCO class of the same kind; those of A are novel in COCO's fold, every fourth class from i + 1.
    coco = (5, 2, 15, 9, 40, 6, 3, 16, 57, 20, 61, 17, 18, 4, 1, 59, 19, 58, 7, 63)
    for split in range(4):
        classes = {v: open_benchmark(coco_pascal(split=split, variant=v)).wanted("test") for v in ("A", "B", "C")}
        assert classes["A"] == [c for c in range(1, 21) if (coco[c - 1] - 1) % 4 == split]
        assert set(classes["A"]) ^ set(classes["B"]) == ({7, 8} if split > 1 else set())
        assert classes["C"] == list(range(5 * split + 1, 5 * split + 6))


@needs_lists
def test_counts_of_the_real_lists() -> None:
    for split, count in enumerate((7717, 2004, 3468, 2359)):
        index = open_benchmark(coco_pascal(split=split, lists=SPLITS)).index("test")
        assert len(index.lines) == count
    counts = json.loads((SPLITS / "coco20i_class_counts.json").read_text())["val"]
    sizes = {"pascal": [346, 451, 725, 346], "isaid5i": [3108, 3657, 3298]}
    for name, lengths in sizes.items():
        for fold, length in enumerate(lengths):
            keys = ["test_set", name, "test_fold", str(fold), "protocol", "hsnet", "lists", str(SPLITS)]
            index = open_benchmark(test_config(load_config(ROOT / "config/base/pascal.yaml", keys))).index("test")
            assert len(index.lines) == length and all(index.by_class.values())
    for fold, (entries, images) in enumerate(((35783, 26052), (17912, 15305), (14563, 13138), (14315, 12640))):
        listed = read_class_lists(SPLITS / f"coco20i_hsnet_val_fold{fold}.txt")
        assert {str(c): len(names) for c, names in listed.items()} == {str(c): counts[str(c)] for c in listed}
        assert sum(map(len, listed.values())) == entries and len({n for x in listed.values() for n in x}) == images


def test_fold_without_novel_classes(tmp_path: Path) -> None:
    cfg = load_config(ROOT / "config/base/pascal.yaml", ["split", "4", "data_root", str(tmp_path)])
    assert (cfg.novel_class_count, cfg.base_class_count) == (0, 20)
    assert (open_benchmark(cfg).wanted("train"), open_benchmark(cfg).wanted("val")) == (list(range(1, 21)), [])
    with pytest.raises(UserError, match="split: 4 has no novel classes; set test_set"):
        load_index(cfg, "val")
    with pytest.raises(UserError, match="split: 5"):
        load_config(ROOT / "config/base/pascal.yaml", ["split", "5"])
    with pytest.raises(UserError, match="split: 4"):
        load_config(ROOT / "config/base/coco.yaml", ["split", "4"])


def test_public_lists_name_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy")
    (tmp_path / "toy/lists/val").mkdir(parents=True)
    lines = [f"2008_{number:06}__{number % 5 + 1:02}" for number in range(20)]
    (tmp_path / "toy/lists/val/fold0.txt").write_text("\n".join(lines))
    cfg = test_config(toy_config(tmp_path, test_set="pascal", test_root=tmp_path / "toy", protocol="hsnet"))
    with pytest.raises(UserError, match=r"2008_000000.jpg: no such image, named in .*lists"):
        load_index(cfg, "test")
    with pytest.raises(UserError, match="data_set toy has no public lists"):
        load_index(toy_config(tmp_path, protocol="hsnet"), "test")


def test_public_lists_know_all_that_a_query_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode is hard by what is in its query's mask, not by what a list says of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy")
    (tmp_path / "toy/lists/val").mkdir(parents=True)
    masks = masks_of(tmp_path / "toy", "val")
    shown = {Path(name).stem: {*np.unique(mask)} - {0, 255} for name, mask in masks.items()}
    lines = [f"{name}__{class_id:02}" for name, present in shown.items() for class_id in present if class_id <= 5]
    (tmp_path / "toy/lists/val/fold0.txt").write_text("\n".join(lines))
    place = {"test_set": "pascal", "test_root": tmp_path / "toy", "protocol": "hsnet", "metric_size": ""}
    drawn = make_episodes(toy_config(tmp_path, **place), 0, 40)
    for episode in drawn.episodes:
        assert episode.hard == (len(shown[Path(episode.query).stem]) > 1)
    assert any({*shown[Path(e.query).stem]} - {1, 2, 3, 4, 5} for e in drawn.episodes)

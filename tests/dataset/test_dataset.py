"""Data sets: episodes as tensors, reproducible training draws, the base learner's labels, files that are wrong."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import dataset.dataset as dataset_module
from dataset.benchmarks.table import open_benchmark
from dataset.dataset import BaseImages, EvaluationEpisodes, Item, TrainingEpisodes, collate
from dataset.episode import Episode, draw_absent, draw_episodes
from dataset.index import load_index
from dataset.transform import fit_image, fit_mask
from engine.evaluation import Outcome
from util.config import Config
from util.errors import UserError
from util.image import ImageRule, normalise

DATA = Path(__file__).resolve().parents[1] / "data"
MakeConfig = Callable[..., Config]
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def expected_image(path: Path, size: int) -> torch.Tensor:
    image = np.asarray(cv2.imread(str(path)), np.float32)[..., ::-1]
    return torch.from_numpy((cv2.resize(image, (size, size)) - MEAN) / STD).permute(2, 0, 1)


@pytest.mark.parametrize("protocol", ["released", "seeded"])
@pytest.mark.parametrize("ann_type", ["mask", "bbox"])
def test_test_items_hold_the_episode(toy_root: Path, toy_config: MakeConfig, protocol: str, ann_type: str) -> None:
    cfg = toy_config(toy_root, split=1, shot=3, val_size=41, protocol=protocol, ann_type=ann_type)
    index, files = load_index(cfg, "val")
    episodes = draw_episodes(index, 3, 70, protocol=protocol)
    items = EvaluationEpisodes(cfg, episodes, files, list(index.by_class))
    assert len(items) == 70
    for number, episode in enumerate(episodes):
        item = items[number]
        order = episode.support[::-1]
        assert (item["names"], item["number"]) == ([episode.query, *order], number)
        assert (item["class_id"], item["class_index"]) == (episode.class_id, episode.class_id - 3)
        torch.testing.assert_close(item["query"], expected_image(files[episode.query][0], 41))
        truth = np.array(Image.open(files[episode.query][1]))
        np.testing.assert_array_equal(item["query_mask"] == 1, truth == episode.class_id)
        np.testing.assert_array_equal(item["query_mask"] == 255, truth == 255)
        assert item["query_mask"].dtype == item["support_mask"].dtype == torch.uint8
        for image, mask, name in zip(item["support"], item["support_mask"], order, strict=True):
            torch.testing.assert_close(image, expected_image(files[name][0], 41))
            truth = cv2.resize(np.array(Image.open(files[name][1])), (41, 41), interpolation=cv2.INTER_NEAREST)
            assert ((mask == 255).numpy() == (truth == 255)).all() and (mask <= 1)[mask != 255].all()
            of_class = truth == episode.class_id
            assert (mask.numpy()[of_class] == 1).all()
            if ann_type == "mask":
                assert (mask == 1).sum() == of_class.sum()


def test_training_items_depend_on_seed_epoch_and_item_alone(toy_root: Path, toy_config: MakeConfig) -> None:
    cfg = toy_config(toy_root, shot=2, train_h=41, train_w=41)
    index, files = load_index(cfg, "train")
    classes = list(index.by_class)

    def load(seed: int, epoch: int, **loader: Any) -> list[Item]:
        dataset = TrainingEpisodes(cfg, index, files, classes, seed, epoch)
        return [item for batch in DataLoader(dataset, collate_fn=lambda batch: batch, **loader) for item in batch]

    first = load(3, 1)
    assert [item["names"][0] for item in first] == index.images
    for item in first:
        query, *support = item["names"]
        assert len({query, *support}) == 3 and set(support) <= set(index.by_class[item["class_id"]])
        assert item["class_id"] in index.classes[query] and classes[item["class_index"]] == item["class_id"]
        assert item["query"].shape == (3, 41, 41) and item["support"].shape == (2, 3, 41, 41)
        assert item["query_mask"].shape == (41, 41) and item["query_mask"].dtype == torch.int64
        assert item["support_mask"].shape == (2, 41, 41) and item["support_mask"].dtype == torch.uint8
        assert set(item["query_mask"].unique().tolist()) <= {0, 1, 255}
    again = load(3, 1, num_workers=2, batch_size=5)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    for other in (load(4, 1), load(3, 2)):
        assert sum(same(a, b) for a, b in zip(first, other, strict=True)) == 0


def same(a: Item, b: Item) -> bool:
    return all(torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a)


def test_hard_queries_show_another_base_class_wherever_a_class_has_such_images(
    toy_root: Path, toy_config: MakeConfig
) -> None:
    for number in (7, 15, *range(2, 7)):  # two images of class 8 alone, and of each other class one with another too
        path, own = toy_root / "SegmentationClassAug" / f"train{number:03d}.png", number % 8 + 1
        labels = np.array(Image.open(path))
        mask = np.where(labels == own, labels, 0)
        mask[0, 0] = 0 if own == 8 else own + 1
        Image.fromarray(mask).save(path)
    cfg, hard = (toy_config(toy_root, train_h=41, train_w=41, hard_queries=share) for share in (0, 1))
    index, files = load_index(cfg, "train")
    classes = list(index.by_class)
    index.by_class[8] = [name for name in index.by_class[8] if index.classes[name] == [8]]  # one class has none
    plain, harder = (TrainingEpisodes(c, index, files, classes, seed=1, epoch=2) for c in (cfg, hard))
    changed = 0
    for number in range(len(plain)):
        before, after = plain[number], harder[number]
        query, *support = after["names"]
        assert after["class_id"] == before["class_id"] and query not in support
        others = {*index.classes[query]} & {*classes} - {after["class_id"]}
        assert others if after["class_id"] != 8 else query == before["names"][0]
        changed += query != before["names"][0]
    assert changed > len(plain) / 4


def test_queries_that_lack_the_class(toy_root: Path, toy_config: MakeConfig) -> None:
    cfg = toy_config(toy_root, train_h=73, train_w=73, shot=2, absent_queries=1)  # so large that no object is cut off
    index, files = load_index(cfg, "train")
    items = TrainingEpisodes(cfg, index, files, list(index.by_class), seed=1, epoch=2)
    plain, pasting = (
        TrainingEpisodes(cfg.model_copy(update=change), index, files, list(index.by_class), seed=1, epoch=2)
        for change in ({"absent_queries": 0}, {"paste_queries": 1})
    )
    for number in range(len(items)):
        item, before = items[number], plain[number]
        assert torch.equal(item["query"], pasting[number]["query"])  # or the absent class might be pasted in
        query, *support = item["names"]
        absent = {class_id for class_id in index.by_class if class_id not in index.classes[query]}
        assert query == before["names"][0] and item["class_id"] in absent and query not in support
        assert all(item["class_id"] in index.classes[name] for name in support) and len(set(support)) == 2
        assert (item["query_mask"] != 1).all() and (item["support_mask"] == 1).flatten(1).any(1).all()
    everything = {**index.classes, index.images[0]: list(index.by_class)}
    assert draw_absent(replace(index, classes=everything), index.images[0], 2, random.Random(0)) is None  # lacks none


def test_queries_with_a_pasted_object(toy_root: Path, toy_config: MakeConfig) -> None:
    cfg = toy_config(toy_root, train_h=41, train_w=41, paste_queries=1)
    index, files = load_index(cfg, "train")
    classes = list(index.by_class)
    pasted = TrainingEpisodes(cfg, index, files, classes, seed=1, epoch=2)
    never = cfg.model_copy(update={"paste_queries": 1e-12})  # with the same random changes
    plain = TrainingEpisodes(never, index, files, classes, 1, 2)
    changed = 0
    for number in range(len(pasted)):
        after, before = pasted[number], plain[number]
        assert (after["names"][0], after["class_id"]) == (before["names"][0], before["class_id"])
        other = (after["query"] != before["query"]).any(0)  # where the object lies
        assert torch.equal(after["query_mask"][~other], before["query_mask"][~other])
        assert (after["query_mask"][other] == 0).all()
        assert 2 * (after["query_mask"] == 1).sum() >= (before["query_mask"] == 1).sum()
        changed += bool(other.any())
    assert changed > len(pasted) / 2


def test_training_tells_impossible_classes(toy_root: Path, toy_config: MakeConfig) -> None:
    cfg = toy_config(toy_root, shot=2)
    index, files = load_index(cfg, "train")
    index.by_class[5] = index.by_class[5][:2]
    with pytest.raises(UserError, match="class 5: 2 images, but 2-shot"):
        TrainingEpisodes(cfg, index, files, list(index.by_class), 0, 0)


def test_base_learner_labels(toy_root: Path, toy_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = toy_config(toy_root, split=1, base_train_h=65)  # novel: 3, 4
    values = {0: 0, 1: 1, 2: 2, 3: 0, 4: 0, 5: 3, 6: 4, 7: 5, 8: 6, 255: 255}
    validation = BaseImages(cfg, "val")
    lines = (toy_root / "ImageSets" / "val.txt").read_text().splitlines()
    assert len(validation) == len(lines)
    for item, line in zip((validation[i] for i in range(len(lines))), lines, strict=True):
        image, mask = line.split()
        torch.testing.assert_close(item["image"], expected_image(toy_root / image, 65))
        expected = np.vectorize(values.get)(np.array(Image.open(toy_root / mask)))
        np.testing.assert_array_equal(item["label"], expected)
    training = [BaseImages(cfg, "train", 1, epoch) for epoch in (0, 0, 1)]
    assert len(training[0]) == 90
    files = open_benchmark(cfg).base_files("train")
    monkeypatch.setattr("dataset.benchmarks.layout.read_list", None)  # not read again
    assert same(BaseImages(cfg, "train", 1, 0, files)[7], training[0][7])
    items = [dataset[7] for dataset in training]
    assert same(items[0], items[1]) and not same(items[0], items[2])
    assert items[0]["image"].shape == (3, 65, 65) and items[0]["label"].dtype == torch.int64
    seen = set().union(*(training[0][i]["label"].unique().tolist() for i in range(90)))
    assert seen == {*range(7), 255}


@pytest.mark.parametrize("side", [41, 57])
def test_padded_images_of_released_code(side: int) -> None:
    data = np.load(DATA / f"padded_{side}.npz")
    rule = ImageRule(fit="padded")
    image = normalise(fit_image(data["image"], side, rule)).numpy()
    np.testing.assert_allclose(image, data["out_image"], atol=2e-4 * np.abs(data["out_image"]).max())
    np.testing.assert_array_equal(fit_mask(data["label"], side, rule), data["out_label"])


@pytest.mark.parametrize("metric_size", ["original", "input"])
def test_padded_items(toy_root: Path, toy_config: MakeConfig, metric_size: str) -> None:
    cfg = toy_config(toy_root, split=1, val_size=41, metric_size=metric_size)
    index, files = load_index(cfg, "val")
    items = EvaluationEpisodes(cfg, draw_episodes(index, 1, 9), files, [3, 4], ImageRule("padded"))
    for item in (items[number] for number in range(9)):
        query, support = (files[name] for name in item["names"])
        truth = np.array(Image.open(query[1]))
        h, w = truth.shape
        assert tuple(item["query"].shape) == (3, 41, 41) and tuple(item["support_mask"].shape) == (1, 41, 41)
        height, width = (int(side * (41 / max(h, w))) // 8 * 8 for side in (h, w))
        image = cv2.resize(np.asarray(cv2.imread(str(query[0])), np.float32)[..., ::-1], (width, height))
        expected = np.zeros((41, 41, 3), np.float32)  # black
        expected[:height, :width] = image
        torch.testing.assert_close(item["query"], torch.from_numpy((expected - MEAN) / STD).permute(2, 0, 1))
        if metric_size == "original":
            assert tuple(item["query_mask"].shape) == (max(h, w),) * 2
            np.testing.assert_array_equal(item["query_mask"][:h, :w] == 1, truth == item["class_id"])
            assert (item["query_mask"][h:] == 255).all() and (item["query_mask"][:, w:] == 255).all()
        else:
            assert tuple(item["query_mask"].shape) == (41, 41)
        shown = np.array(Image.open(support[1])).shape
        height, width = (int(side * (41 / max(shown))) // 8 * 8 for side in shown)
        outside = item["support_mask"][0].numpy().copy()
        outside[:height, :width] = 255
        assert (outside == 255).all()
        known = item["names"], item["support_mask"], item["query_mask"]
        [(drawn, mask)], drawn_query, judged = Outcome(0, *known, item["query_mask"], None, items.rule).images(files)
        assert drawn.shape[:2] == mask.shape == (41, 41) and drawn_query.shape[:2] == judged.shape
        if metric_size == "original":
            np.testing.assert_array_equal(drawn_query[:h, :w], files.image(item["names"][0]))
            assert not drawn_query[h:].any() and not drawn_query[:, w:].any()


def test_averaged_images_and_masks_without_ignored_pixels(toy_root: Path, toy_config: MakeConfig) -> None:
    cfg = toy_config(toy_root, split=1, val_size=33)
    for path in (toy_root / "SegmentationClassAug").glob("val*.png"):
        labels = np.array(Image.open(path))
        labels[:5] = 255
        Image.fromarray(labels).save(path)
    index, files = load_index(cfg, "val")
    rule = ImageRule(resample="antialias", keep_ignored=False)
    items = EvaluationEpisodes(cfg, draw_episodes(index, 1, 12), files, [3, 4], rule)
    kept = EvaluationEpisodes(cfg, items.episodes, files, [3, 4], rule._replace(keep_ignored=True))
    for number in range(12):
        item, mask = items[number], kept[number]["support_mask"]
        image = Image.open(files[item["names"][0]][0]).resize((33, 33), Image.Resampling.BILINEAR)
        expected = (np.asarray(image, np.float32) - MEAN) / STD
        torch.testing.assert_close(item["query"], torch.from_numpy(expected).permute(2, 0, 1))
        truth = np.array(Image.open(files[item["names"][0]][1]))
        np.testing.assert_array_equal(item["query_mask"] == 255, truth == 255)  # the truth stays as it is
        assert (mask == 255).any() and torch.equal(item["support_mask"], torch.where(mask == 255, 0, mask))


@pytest.mark.parametrize("ann_type", ["mask", "bbox"])
def test_training_images_as_they_are(toy_root: Path, toy_config: MakeConfig, ann_type: str) -> None:
    cfg = toy_config(toy_root, train_h=33, train_w=33, ann_type=ann_type)
    index, files = load_index(cfg, "train")
    items = TrainingEpisodes(
        cfg, index, files, [*index.by_class], 1, 1, rule=ImageRule("square", "antialias", "none", False)
    )
    for number in range(0, len(items), 7):
        item = items[number]
        for image, name in zip((item["query"], item["support"][0]), item["names"], strict=True):
            squashed = Image.open(files[name][0]).resize((33, 33), Image.Resampling.BILINEAR)
            expected = torch.from_numpy((np.asarray(squashed, np.float32) - MEAN) / STD).permute(2, 0, 1)
            torch.testing.assert_close(image, expected)
        truth = torch.from_numpy(np.array(Image.open(files[item["names"][0]][1])))[None, None]
        truth = torch.nn.functional.interpolate(truth, (33, 33), mode="nearest")[0, 0]
        assert torch.equal(item["query_mask"] == 1, truth == item["class_id"])
        assert torch.equal(item["query_mask"] == 255, truth == 255) and (item["support_mask"] <= 1).all()


def test_images_are_decoded_once(toy_root: Path, toy_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = toy_config(toy_root, split=1, val_size=33)
    index, files = load_index(cfg, "val")
    episodes = draw_episodes(index, 2, 60)
    names = {name for episode in episodes for name in (episode.query, *episode.support)}
    decode = Mock(side_effect=files.image)
    monkeypatch.setattr(files, "image", decode)
    items = EvaluationEpisodes(cfg, episodes, files, [3, 4])
    first = [items[number] for number in range(60)]
    assert sorted(call.args[0] for call in decode.call_args_list) == sorted(names)
    monkeypatch.setattr(dataset_module, "DECODED_BYTES", 20_000)
    few = EvaluationEpisodes(cfg, episodes, files, [3, 4])
    assert all(same(few[number], item) for number, item in enumerate(first))
    assert decode.call_count > 2 * len(names)
    recent = few.reader.recent
    assert recent.nbytes == sum(x.nbytes for x in recent.held.values()) <= 20_000


def test_collate() -> None:
    masks = [torch.zeros(4, 5), torch.ones(5, 4)]
    images = torch.rand(2, 3, 7, 7)
    items = [{"query": images[i], "query_mask": masks[i], "number": i, "names": [f"q{i}", "s"]} for i in range(2)]
    batch = collate(items)
    assert torch.equal(batch["query"], images) and batch["query_mask"] == masks
    assert batch["number"].tolist() == [0, 1] and batch["names"] == [["q0", "s"], ["q1", "s"]]
    assert collate(items[:1])["query_mask"].shape == (1, 4, 5)


def test_wrong_files_are_named(toy_root: Path, toy_config: MakeConfig) -> None:
    """Also from a loader's worker."""
    cfg = toy_config(toy_root)
    index, files = load_index(cfg, "val")
    query, support = index.by_class[2][:2]
    items = EvaluationEpisodes(cfg, [Episode(query, 2, [support])], files, [1, 2])
    image, mask = files[support]
    good, whole = mask.read_bytes(), image.read_bytes()
    h, w = np.array(Image.open(mask)).shape

    def encoded(pixels: np.ndarray) -> bytes:
        return cv2.imencode(".png", pixels)[1].tobytes()

    for path, content, message in (
        (mask, encoded(np.full((h, w), 1, np.uint8)), "no pixel of class 2"),
        (mask, encoded(np.full((h + 1, w), 2, np.uint8)), f"mask is {w}x{h + 1}, its image {image} is {w}x{h}"),
        (mask, encoded(np.full((h, w, 3), 2, np.uint8)), "mask holds RGB pixels"),
        (mask, good[: len(good) // 2], "not a readable mask"),
        (image, whole[:99], "not a readable image"),
        (mask, None, "no such mask"),
        (image, None, "no such image"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError) as error:
            EvaluationEpisodes(cfg, items.episodes, files, [1, 2])[0]
        assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)
        path.write_bytes(good if path == mask else whole)
    mask.unlink()
    with pytest.raises(UserError, match="no such mask"):
        next(iter(DataLoader(items, num_workers=1)))

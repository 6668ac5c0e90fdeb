"""Stored views against the images that they stand for."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dataset import views
from dataset.dataset import TrainingViews, train_augmentation, train_dataset
from dataset.episode import wanted_classes
from dataset.index import config_classes, load_index
from engine.views import stored_views, view_digest
from model.methods.hmnet import HMNet
from tests.toy import random_network, toy_config, write_toy
from util.config import Config
from util.errors import UserError

KEYS = {"views": 3, "ensemble": False, "blocks": 2}


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy", val=8)
    return toy_config(tmp_path, view_folder=tmp_path / "views", **KEYS)


def files_of(cfg: Config) -> list[Path]:
    return sorted(path for path in Path(cfg.view_folder).rglob("*") if path.is_file())


def test_views_stand_for_the_images(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_network(cfg).eval()
    index, files = load_index(cfg, "train")
    store = stored_views(cfg, model, index, files)
    pairs = [(name, class_id) for name in index.images for class_id in wanted_classes(index, name)]
    assert len(files_of(cfg)) == 3 * len(pairs)

    some = [(*pair, number) for pair in pairs[:3] for number in range(3)]
    pictures = TrainingViews(some, index, files, train_augmentation(cfg), cfg.max_side)
    images = torch.stack([pictures[number]["image"] for number in range(len(some))])
    maps, masks = zip(*(store.read(files, *view) for view in some), strict=True)
    assert all(np.array_equal(mask, pictures[number]["mask"]) for number, mask in enumerate(masks))
    for pair in range(0, 9, 3):  # of one image, each another change
        assert len({images[number].numpy().tobytes() for number in range(pair, pair + 3)}) == 3
    joined = model.backbone.joined(images)
    torch.testing.assert_close(torch.stack(maps), joined, rtol=2**-10, atol=2**-24)  # of 16 bits, steps and least
    mask = torch.from_numpy(np.stack(masks[:1])).unsqueeze(1)
    expected, actual = (model(x[1:2], x[:1, None], mask).final for x in (images, joined))
    assert actual.shape == (1, 2, cfg.train_h, cfg.train_w)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)

    item = train_dataset(cfg, index, files, config_classes(cfg, "train"), 1, 1, store)[0]
    seen = [store.read(files, item["names"][0], item["class_id"], number) for number in range(3)]
    assert sum(torch.equal(item["query"], view) and np.array_equal(item["query_mask"], m) for view, m in seen) == 1

    def no_more(*_: object) -> Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(type(model.backbone), "joined", no_more)
    stored_views(cfg, model, index, files)


def test_what_has_changed_is_computed_again(cfg: Config) -> None:
    model = random_network(cfg)
    index, files = load_index(cfg, "train")
    store = stored_views(cfg, model, index, files)
    before = files_of(cfg)
    image, _ = files[index.images[0]]
    os.utime(image, (0, 0))
    index, files = load_index(cfg, "train")
    views._version.cache_clear()
    stored_views(cfg, model, index, files)
    assert len(files_of(cfg)) == len(before) + 3 * len(wanted_classes(index, index.images[0]))
    for other in (random_network(cfg), model):
        for change in ({"max_side": 40}, {"scale_max": 1.5}, {}):
            same = other is model and not change
            assert (view_digest(cfg.model_copy(update=change), other) == store.folder.name) == same
    path = store.path(files, index.images[0], wanted_classes(index, index.images[0])[0], 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path.name}.*remove it"):
        store.read(files, index.images[0], wanted_classes(index, index.images[0])[0], 0)


def test_maps_of_two_sizes_are_refused(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    model: HMNet = random_network(cfg)
    index, files = load_index(cfg, "train")
    forward = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda x: (*forward(x)[:2], forward(x)[2][..., ::2, ::2]))
    with pytest.raises(UserError, match=r"views: tiny cannot be stored.* positions wide; leave views empty"):
        stored_views(cfg, model, index, files)
    assert not files_of(cfg)


def test_boxes_are_refused_in_training_alone(cfg: Config) -> None:
    boxes = cfg.model_copy(update={"ann_type": "bbox"})
    assert toy_config(Path(cfg.data_root).parent, **KEYS, ann_type="bbox").views == 3
    with pytest.raises(UserError, match=r"^views: should be empty for training with ann_type bbox"):
        stored_views(boxes, random_network(boxes), *load_index(boxes, "train"))


def test_pasted_views_belong_to_a_fold(cfg: Config) -> None:
    cfg = cfg.model_copy(update={"paste_queries": 0.5})
    model = random_network(cfg)
    index, files = load_index(cfg, "train")
    store = stored_views(cfg, model, index, files)
    shown = [(name, class_id) for name in index.images for class_id in wanted_classes(index, name)]
    assert len(files_of(cfg)) == 6 * len(shown)
    other = replace(store, classes=store.classes[1:])
    assert [other.path(files, *shown[0], number) == store.path(files, *shown[0], number) for number in (-1, 0)] == [
        0,
        1,
    ]
    items = train_dataset(cfg.model_copy(update={"paste_queries": 1}), index, files, [*index.by_class], 1, 1, store)
    for item in (items[number] for number in range(4)):
        seen = [store.read(files, item["names"][0], item["class_id"], number)[0] for number in range(-3, 0)]
        assert sum(torch.equal(item["query"], view) for view in seen) == 1

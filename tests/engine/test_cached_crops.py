"""Cached crops against the images that they stand for."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dataset.cached_crops import CropStore, crop_files
from dataset.dataset import TrainingCrops, TrainingEpisodes, collate
from dataset.episode import wanted_classes
from dataset.index import ImageIndex, ImageMaskStore, load_index
from engine.cached_crops import crop_digest, stored_crops
from engine.loader import item_bytes
from tests.toy import toy_config, write_toy
from tools.cache import main as show_cache
from util.config import Config, restore_config
from util.errors import UserError
from util.image import ImageRule

KEYS = {"cached_crops": 3, "ensemble": False}


class Maps(nn.Module):
    """Two maps of different sizes, one of which is far beyond 16 bits at places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.passes = 0

    def forward(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        self.passes += 1
        fine = self.conv(images)
        maps = {"fine": fine, "coarse": nn.functional.avg_pool2d(fine, 3) * 1e5, "unused": fine}
        return {name: maps[name] for name in names}


class Segmenter(nn.Module):
    """As much of a method as crops need."""

    def __init__(self, rule: ImageRule = ImageRule()) -> None:
        super().__init__()
        self.maps: tuple[str, ...] = ("fine", "coarse")
        self.images, self.backbone = rule, Maps().eval()

    def maps_in(self, role: str) -> tuple[str, ...]:
        return self.maps


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy", val=8)
    return toy_config(tmp_path, crop_folder=tmp_path / "crops", **KEYS)


def store_all(cfg: Config, method: Any, rule: ImageRule = ImageRule()) -> tuple[CropStore, ImageIndex, ImageMaskStore]:
    index, files = load_index(cfg, "train")
    return stored_crops(cfg, method, index, files), index, files


def files_of(cfg: Config) -> list[Path]:
    return sorted(path for path in Path(cfg.crop_folder).rglob("*") if path.is_file())


def shown(index: ImageIndex) -> list[tuple[str, int]]:
    return [(name, class_id) for name in index.images for class_id in wanted_classes(index, name)]


@pytest.mark.parametrize("rule", [ImageRule(), ImageRule(augment="squash", keep_ignored=False)])
def test_crops_stand_for_the_images(cfg: Config, rule: ImageRule) -> None:
    method = Segmenter(rule)
    store, index, files = store_all(cfg, method)
    pairs = shown(index)
    assert len(files_of(cfg)) == 3 * len(pairs) and files_of(cfg) == sorted(crop_files(Path(cfg.crop_folder)))

    some = [(*pair, number) for pair in pairs[:3] for number in range(3)]
    crops = TrainingCrops(cfg, some, index, files, rule)
    images = torch.stack([crops[number]["image"] for number in range(len(some))])
    for pair in range(0, 9, 3):  # of one image, each another change
        assert len({images[number].numpy().tobytes() for number in range(pair, pair + 3)}) == 3
    with torch.no_grad():
        expected = {name: x.clamp(-65504, 65504) for name, x in method.backbone(images, method.maps).items()}
    assert (expected["coarse"].abs() == 65504).any()
    for number, crop in enumerate(some):
        maps, mask = store.read(files, *crop)
        assert np.array_equal(mask, crops[number]["mask"]) and maps.keys() == set(method.maps)
        for name in maps:  # kept in 16 bits, computed in other batches in 32
            least = 1e-6 * expected[name].abs().max().item()
            torch.testing.assert_close(maps[name], expected[name][number], rtol=2**-10, atol=least)

    dataset = TrainingEpisodes(cfg, index, files, [*index.by_class], 1, 1, store, rule)
    item = dataset[0]
    seen = [store.read(files, item["names"][0], item["class_id"], number) for number in range(3)]
    same = [all(torch.equal(item["query"][name], x) for name, x in maps.items()) for maps, _ in seen]
    assert sum(same) == 1 and np.array_equal(item["query_mask"], seen[same.index(True)][1])
    assert item["support"]["fine"].shape == (1, 4, 16, 16) and item["support"]["coarse"].shape == (1, 4, 5, 5)
    assert rule.keep_ignored or (item["support_mask"] <= 1).all()
    batch = collate([item, dataset[1]])
    assert batch["query"]["coarse"].shape == (2, 4, 5, 5) and batch["support"]["fine"].shape == (2, 1, 4, 16, 16)
    assert item_bytes(dataset, 0) == 2 * 4 * 4 * (16 * 16 + 5 * 5) + 33 * 33 * (8 + 1)
    passes = method.backbone.passes
    store_all(cfg, method)
    assert method.backbone.passes == passes  # nothing is computed again


def test_crops_are_known_by_content(cfg: Config, tmp_path: Path) -> None:
    method = Segmenter()
    store, index, files = store_all(cfg, method)
    before = files_of(cfg)
    shutil.copytree(tmp_path / "toy", tmp_path / "elsewhere")
    store_all(cfg.model_copy(update={"data_root": str(tmp_path / "elsewhere")}), method)
    image, _ = files[index.images[0]]
    os.utime(image, (0, 0))
    store_all(cfg, method)
    assert files_of(cfg) == before
    with image.open("ab") as file:  # what follows a JPEG's end changes no pixel
        file.write(b"\0")
    store_all(cfg, method)
    assert len(files_of(cfg)) == len(before) + 3 * len(wanted_classes(index, index.images[0]))
    for other in (Segmenter(), Segmenter(ImageRule(augment="squash")), method):
        if other is not method:
            assert crop_digest(cfg, other) != store.folder.name  # type: ignore[arg-type]
        for change in ({"max_side": 40}, {"scale_max": 1.5}, {}):
            same = other is method and not change
            assert (crop_digest(cfg.model_copy(update=change), other) == store.folder.name) == same  # type: ignore[arg-type]
    path = store.path(files, *shown(index)[0], 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path.name}.*remove it"):
        store.read(files, *shown(index)[0], 0)


def test_crops_that_cannot_be_kept_are_refused_before_any_is_written(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change, message in (
        ({"ann_type": "bbox"}, r"^cached_crops: should be empty for training with ann_type bbox"),
        (
            {"crop_limit_gb": 1e-5},
            r"more crops take .* GB, beyond crop_limit_gb 1e-05.*tools\.cache --crops .* --clear",
        ),
    ):
        with pytest.raises(UserError, match=message):
            store_all(cfg.model_copy(update=change), Segmenter())
    for maps in ({"query": (), "support": ()}, {"query": ("fine",), "support": ()}):
        method = Segmenter()
        monkeypatch.setattr(method, "maps_in", maps.__getitem__)
        with pytest.raises(UserError, match=r"^cached_crops: should be empty for HMNet, which takes no maps"):
            store_all(cfg, method)
    method = Segmenter()
    method.backbone.train()
    with pytest.raises(UserError, match=r"^cached_crops: should be empty for HMNet, whose backbone normalises by the"):
        store_all(cfg, method)
    disk = SimpleNamespace(free=100)
    monkeypatch.setattr("engine.cached_crops.shutil.disk_usage", lambda _: disk)
    with pytest.raises(UserError, match="the disk has 1e-07 GB left"):
        store_all(cfg, Segmenter())
    assert not files_of(cfg)


def test_pasted_crops_belong_to_a_fold(cfg: Config) -> None:
    cfg = cfg.model_copy(update={"paste_queries": 0.5})
    store, index, files = store_all(cfg, Segmenter())
    pairs = shown(index)
    assert len(files_of(cfg)) == 6 * len(pairs)
    other = replace(store, classes=store.classes[1:])
    equal = [other.path(files, *pairs[0], number) == store.path(files, *pairs[0], number) for number in (-1, 0)]
    assert equal == [False, True]
    items = TrainingEpisodes(cfg.model_copy(update={"paste_queries": 1}), index, files, [*index.by_class], 1, 1, store)
    for item in (items[number] for number in range(4)):
        seen = [store.read(files, item["names"][0], item["class_id"], number)[0] for number in range(-3, 0)]
        assert sum(torch.equal(item["query"]["fine"], maps["fine"]) for maps in seen) == 1


def test_what_is_kept_is_shown_and_cleared(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    store_all(cfg, Segmenter())
    (own := Path(cfg.crop_folder) / "notes.txt").write_text("mine")
    count, size = len(files_of(cfg)) - 1, sum(path.stat().st_size for path in files_of(cfg)) - 4
    capsys.readouterr()
    show_cache(["--crops", cfg.crop_folder])
    counts, crops = capsys.readouterr().out.splitlines()
    assert counts.split()[:3] == ["mask", "counts", "1"]
    assert crops.split() == ["cached", "crops", str(count), "files", f"{size / 1e6:.1f}", "MB", cfg.crop_folder]
    show_cache(["--crops", cfg.crop_folder, "--clear"])
    assert capsys.readouterr().out.count("removed") == 2 and files_of(cfg) == [own]
    assert [*Path(cfg.crop_folder).iterdir()] == [own]
    show_cache([])
    assert " 0 files" in capsys.readouterr().out


def test_former_names_of_keys_are_read(cfg: Config, tmp_path: Path) -> None:
    with pytest.warns(UserWarning) as caught:
        former = toy_config(tmp_path, views=2, view_folder="exp/views")
    assert (former.cached_crops, former.crop_folder) == (2, "exp/views")
    told = [str(warning.message) for warning in caught]
    assert any("views is now called cached_crops" in line for line in told)
    assert any("view_folder is now called crop_folder" in line for line in told)
    content = former.model_dump()
    content |= {"views": content.pop("cached_crops"), "view_folder": content.pop("crop_folder")}
    assert restore_config(content) == former

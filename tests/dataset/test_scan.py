"""Counting the classes of masks: right, once, and again only for what has changed."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import scan
from tests.toy import generator
from util.errors import UserError


@pytest.fixture
def masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, found = generator(), {}
    for number in range(4):
        found[f"m{number}.png"] = rng.choice([0, 1, 2, 7, 255], (9, 12)).astype(np.uint8)
    for name, mask in found.items():
        Image.fromarray(mask).save(tmp_path / name)
    return found


def expected(mask: np.ndarray) -> dict[int, int]:
    return {v: int((mask == v).sum()) for v in range(1, 255) if (mask == v).any()}


def test_counts_are_remembered(tmp_path: Path, masks: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    count = scan.count_classes

    def counted(path: Path) -> dict[int, int]:
        read.append(path.name)
        return count(path)

    monkeypatch.setattr(scan, "count_classes", counted)
    counts = scan.scan_masks(tmp_path, list(masks), tmp_path / "val.txt")
    assert counts == {name: expected(mask) for name, mask in masks.items()} and sorted(read) == sorted(masks)
    read.clear()
    assert scan.scan_masks(tmp_path, list(masks), tmp_path / "val.txt") == counts and not read
    Image.fromarray(np.full((9, 12), 5, np.uint8)).save(tmp_path / "m2.png")
    os.utime(tmp_path / "m2.png", ns=(1, 1))
    assert scan.scan_masks(tmp_path, list(masks), tmp_path / "val.txt") == counts | {"m2.png": {5: 108}}
    assert read == ["m2.png"]


def test_a_damaged_cache_is_as_good_as_none(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    counts = scan.scan_masks(tmp_path, list(masks), tmp_path / "val.txt")
    (cache,) = (tmp_path / scan.CACHE_FOLDER).glob("*.json")
    for text in ("", "{", '{"version": 0, "masks": {}}', '{"version": 1, "masks": {"m0.png": 3}}'):
        cache.write_text(text)
        assert scan.scan_masks(tmp_path, list(masks), tmp_path / "val.txt") == counts


def test_a_missing_mask_is_named(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    with pytest.raises(UserError, match=r"gone\.png: no such mask, named in .*val\.txt"):
        scan.scan_masks(tmp_path, [*masks, "gone.png"], tmp_path / "val.txt")

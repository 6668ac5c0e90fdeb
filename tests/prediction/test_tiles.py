"""Tiles: what one of them gives, blended to what the whole image gets."""

import errno
import os

import numpy as np
import pytest
import torch

from prediction import tiles
from prediction.predictor import Predictor
from prediction.tiles import Tiling, check_tiling, crop_supports, strips, window_of
from tests.toy import draw_image, generator
from util.errors import UserError
from util.pixels import IGNORE


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(1000, 300, 0.25), (301, 300, 0), (300, 300, 0.5), (40, 300, 0.9)]
)
def test_tiles_cover_a_side(length: int, side: int, overlap: float) -> None:
    starts = Tiling(side, overlap).starts(length)
    covered = np.zeros(length, int)
    for start in starts:
        assert start >= 0 and start + min(side, length) <= length
        covered[start : start + side] += 1
    assert covered.min() >= 1 and starts == sorted(set(starts))
    steps = np.diff(starts)
    assert (steps <= round(side * (1 - overlap))).all()


@pytest.fixture
def shown(predictor: Predictor) -> Predictor:
    image, mask = draw_image(generator(), 60, 60, [3])
    predictor.set_support([image], [(mask == 3).astype(np.uint8)])
    return predictor


def test_an_image_that_is_one_tile(shown: Predictor) -> None:
    image = draw_image(generator(), 50, 70, [3])[0]
    whole, tiled = shown.predict(image), shown.predict_tiled(image, Tiling(70))
    assert np.abs(whole.class_probabilities - tiled.class_probabilities).max() < 1e-2  # of half precision
    assert (whole.mask != tiled.mask).mean() < 0.01


def test_margins_are_averaged_by_a_hann_window(shown: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By definition, over the whole image at once; from strips of the right rows."""
    image = draw_image(generator(), 75, 130, [3])[0]
    tiling, side = Tiling(40, 0.3), 40
    total, weight = np.zeros((75, 130)), np.zeros((75, 130))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, side + 1) / (side + 1))
    for top in tiling.starts(75):
        for left in tiling.starts(130):
            probability = shown.predict(image[top : top + side, left : left + side]).probability.astype(np.float64)
            place = slice(top, top + side), slice(left, left + side)
            total[place] += np.outer(hann, hann) * np.log(probability / (1 - probability))
            weight[place] += np.outer(hann, hann)
    expected = 1 / (1 + np.exp(-total / weight))
    found = list(strips(shown, window_of(image), (75, 130), tiling, batch=3))
    assert [strip.mask.shape for strip in found] == [(28, 130), (7, 130), (40, 130)]
    assert np.abs(np.concatenate([strip.probability for strip in found]) - expected).max() < 1e-3
    joined = shown.predict_tiled(image, tiling)
    assert (joined.mask != np.concatenate([strip.mask for strip in found])).mean() == 0


def test_a_large_image_lies_in_a_file(shown: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    image, tiling = draw_image(generator(), 75, 130, [3])[0], Tiling(40)
    small = shown.predict_tiled(image, tiling)
    monkeypatch.setattr(tiles, "IN_MEMORY", 1)
    monkeypatch.setattr(tiles, "STRIP", 700)
    large = shown.predict_tiled(image, tiling)
    assert isinstance(large.class_probabilities, np.memmap) and not isinstance(small.class_probabilities, np.memmap)
    assert (large.mask == small.mask).all() and (large.class_probabilities == small.class_probabilities).all()

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"No space left on device: .* GB are needed; set TMPDIR"):
        shown.predict_tiled(image, tiling)


def test_only_one_row_of_tiles_is_read_at_a_time(shown: Predictor) -> None:
    reads: list[int] = []

    def window(top: int, left: int, height: int, width: int) -> np.ndarray:
        reads.append(top)
        return np.full((height, width, 3), top % 256, np.uint8)

    rows = 0
    for strip in strips(shown, window, (200, 90), Tiling(50)):
        assert max(reads) <= rows
        rows += len(strip.mask)
    assert rows == 200


def test_supports_are_cut_around_their_objects() -> None:
    image = np.arange(200 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 300, 3)
    mask = np.zeros((200, 300), np.uint8)
    mask[150:170, 280:290] = 1
    small = np.ones((30, 40, 3), np.uint8)
    box = (2, 3, 20, 25)
    ((first, second), (one, two)) = crop_supports({"a": ([image, small], [mask, box])}, 100)["a"]
    assert np.array_equal(first, image[100:200, 200:300]) and np.array_equal(one, mask[100:200, 200:300])
    assert np.array_equal(second[:30, :40], small) and not second[30:].any() and not second[:, 40:].any()
    assert (two[30:] == IGNORE).all() and (two[:30, 40:] == IGNORE).all() and (two == 1).sum() == 18 * 22
    mask[:, 50:250] = 1  # larger than a tile
    (whole,), _ = crop_supports({"a": ([image], [mask])}, 100)["a"]
    assert whole.shape == (240, 240, 3)


def test_tiles_that_will_not_do(shown: Predictor) -> None:
    with pytest.raises(UserError, match="--tile 2: is less than the 8 pixels of a step of this network"):
        check_tiling(shown, Tiling(2))
    with pytest.raises(UserError, match="--overlap 1.0: should be from 0 to 0.9"):
        check_tiling(shown, Tiling(100, 1.0))
    assert torch.is_inference_mode_enabled() is False

"""Pairs of large images and their masks, reduced; mistakes in pairs are in test_dataset.py."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset.reading import oversize_note, read_pair
from dataset.transform import Augmentation
from tests.toy import generator
from util.errors import UserError


def write_pair(folder: Path, height: int, width: int, orientation: int = 1) -> tuple[Path, Path]:
    """A smooth JPEG, turned as EXIF says when shown, and a mask of its size as it is shown."""
    rng = generator()
    image = cv2.resize(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(folder / "image.jpg", quality=95, exif=exif)
    mask = np.zeros((width, height) if orientation >= 5 else (height, width), np.uint8)
    mask[: mask.shape[0] // 2, : mask.shape[1] // 3] = 1
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "image.jpg", folder / "mask.png"


def averages(values: np.ndarray, count: int) -> np.ndarray:
    """The means of so many equal parts along the first axis, which may begin and end within a value."""
    edges = np.linspace(0, len(values), count + 1)
    whole = np.minimum(edges.astype(int), len(values) - 1)
    sums = np.cumsum(values, 0, np.float64)[whole] + (edges - whole - 1)[:, None, None] * values[whole]
    return np.diff(sums, axis=0) * count / len(values)


@pytest.mark.parametrize(("height", "width", "orientation"), [(1203, 901, 1), (640, 1999, 6), (90, 120, 3)])
def test_large_images_are_reduced_by_averaging(tmp_path: Path, height: int, width: int, orientation: int) -> None:
    pair = write_pair(tmp_path, height, width, orientation)
    image, mask = read_pair(*pair, max_side=200)
    whole, whole_mask = read_pair(*pair)
    np.testing.assert_array_equal(mask, whole_mask)
    assert whole.shape[:2] == mask.shape
    if max(height, width) <= 200:
        np.testing.assert_array_equal(image, whole)
        return
    factor = 200 / max(height, width)
    assert image.shape[:2] == tuple(round(side * factor) for side in whole.shape[:2])
    upright = Image.fromarray(whole.astype(np.uint8))
    upright.save(tmp_path / "image.png")
    averaged, _ = read_pair(tmp_path / "image.png", pair[1], max_side=200)
    expected = averages(averages(whole, image.shape[0]).swapaxes(0, 1), image.shape[1]).swapaxes(0, 1)
    assert np.abs(averaged - expected).max() <= 0.51  # rounded
    assert np.abs(image - expected).mean() < 2  # a JPEG is decoded at a fraction of its size
    Image.fromarray(mask[::2, ::2]).save(pair[1])
    with pytest.raises(UserError, match=r"mask is .*, its image .* is "):
        read_pair(*pair, max_side=200)


def test_reduced_images_and_their_masks_are_cropped_together(tmp_path: Path) -> None:
    image, mask = read_pair(*write_pair(tmp_path, 900, 1200), max_side=120)  # 90 x 120 now
    image = np.repeat(cv2.resize(mask, (120, 90), interpolation=cv2.INTER_NEAREST)[..., None] * np.float32(200), 3, 2)
    crops = [Augmentation(65, 65, (1, 1), (0, 0), 0.85)(image, mask, random.Random()) for _ in range(20)]
    for crop, crop_mask in crops:
        assert ((crop[..., 0] > 100) == (crop_mask == 1)).mean() > 0.97
    assert any((crop_mask == 1).any() for _, crop_mask in crops)


def test_images_much_larger_than_the_crop_are_told(tmp_path: Path) -> None:
    image, _ = write_pair(tmp_path, 300, 500)
    small = tmp_path / "small.png"
    Image.new("RGB", (400, 20)).save(small)
    note = oversize_note([image, image, small], 321, None)
    assert note is not None and "500 pixels" in note and "max_side, for example to 340" in note
    assert oversize_note([image, image, small], 321, 340) is None
    assert oversize_note([image, small, small], 321, None) is None
    assert oversize_note([image] * 3, 334, None) is None

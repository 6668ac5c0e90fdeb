"""Scan directions against images of positions turned and cut by NumPy."""

import numpy as np
import pytest
import torch

from model.parts.order import patch_orders, plain_orders


def row_major(image: np.ndarray) -> list[int]:
    return [int(x) for row in image for x in row]


def patch_by_patch(image: np.ndarray, patches: int) -> list[int]:
    """Patches row by row, the pixels of each row by row."""
    return [x for band in np.split(image, patches) for patch in np.split(band, patches, 1) for x in row_major(patch)]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_plain_orders(size: int) -> None:
    image = np.arange(size**2).reshape(size, size)
    rows, columns = row_major(image), row_major(image.T)
    assert plain_orders(size).tolist() == [rows, columns, rows[::-1], columns[::-1]]


@pytest.mark.parametrize(("size", "patches"), [(4, 4), (6, 2), (12, 4), (5, 1)])
def test_patch_orders(size: int, patches: int) -> None:
    image = np.arange(size**2).reshape(size, size)
    rows, columns = patch_by_patch(image, patches), patch_by_patch(image.T, patches)
    assert patch_orders(size, patches).tolist() == [rows, columns, rows[::-1], columns[::-1]]
    assert patch_orders(size, patches).dtype == torch.int64


def test_one_patch_is_the_whole_image() -> None:
    assert torch.equal(patch_orders(7, 1), plain_orders(7))


def test_sizes_that_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="10 x 10 cannot be cut into 4 x 4"):
        patch_orders(10, 4)

"""Reads the pairs of image and mask; whatever is wrong with a file is a UserError that names it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.errors import UserError
from util.image import UNREADABLE, read_image

IGNORE = 255  # mask value of pixels that count neither as object nor as background
MASK_MODES = ("1", "L", "P")  # a pixel is the number of its class; a palette only colours it


def read_pair(image_path: Path, mask_path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """RGB image (h, w, 3), 0 to 255, and the class number of every pixel (h, w), 255 = ignore.

    UserError when a file is missing or unreadable, when the mask is no index image, and when the sizes differ.
    """
    image = read_image(image_path).astype(np.float32)
    mask = np.array(_open_mask(mask_path), dtype=np.uint8)
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        sizes = f"mask is {mask_width}x{mask_height}, its image {image_path} is {width}x{height}"
        raise UserError(f"{mask_path}: {sizes}; make them equal")
    return image, mask


def count_classes(path: Path) -> dict[int, int]:
    """Class -> pixels of a mask, background and ignored pixels aside; UserError as in read_pair."""
    mask = _open_mask(path)
    counts = np.bincount(np.array(mask, np.uint8).ravel()).tolist() if mask.mode == "1" else mask.histogram()
    return {value: count for value, count in enumerate(counts) if count and value not in (0, IGNORE)}


def _open_mask(path: Path) -> Image.Image:
    try:
        mask = Image.open(path)
        mask.load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such mask; check the list file and data_root") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable mask ({error}); fetch or export it again") from None
    if mask.mode not in MASK_MODES:
        raise UserError(f"{path}: mask holds {mask.mode} pixels; masks are 8-bit index PNG files, value = class number")
    return mask

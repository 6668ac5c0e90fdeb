"""Reads image and mask files; whatever is wrong with one is a UserError that names it."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.errors import UserError

IGNORE = 255  # mask value of pixels that count neither as object nor as background
MASK_MODES = ("1", "L", "P")  # one byte a pixel is the class number; a palette only colours it


def read_image(path: Path) -> NDArray[np.float32]:
    """RGB image (h, w, 3), 0 to 255, whatever the file holds (grey, palette, alpha); UserError when unreadable."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)  # (h, w, 3) BGR
    if image is None:
        raise UserError(f"{path}: {_why_unreadable(path, 'image')}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Class number of every pixel (h, w), 255 = ignore; UserError when unreadable or not an index image."""
    with _open_mask(path) as mask:
        return np.array(mask, dtype=np.uint8)


def read_pair(image_path: Path, mask_path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image (h, w, 3) and mask (h, w) of one list line; UserError when their sizes differ."""
    image, mask = read_image(image_path), read_mask(mask_path)
    if image.shape[:2] != mask.shape:
        (h, w), (image_h, image_w) = mask.shape, image.shape[:2]
        raise UserError(
            f"{mask_path}: mask is {w}x{h} but its image {image_path} is {image_w}x{image_h}; make them equal"
        )
    return image, mask


def count_classes(path: Path) -> dict[int, int]:
    """Number of pixels of every value in a mask, background and ignored pixels aside; UserError as read_mask."""
    with _open_mask(path) as mask:
        counts = np.bincount(np.array(mask, np.uint8).ravel()).tolist() if mask.mode == "1" else mask.histogram()
    return {value: count for value, count in enumerate(counts) if count and value not in (0, IGNORE)}


def _open_mask(path: Path) -> Image.Image:
    try:
        mask = Image.open(path)
        mask.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"{path}: {_why_unreadable(path, 'mask')}") from None
    if mask.mode not in MASK_MODES:
        raise UserError(f"{path}: mask holds {mask.mode} pixels; masks are 8-bit index PNG files, value = class number")
    return mask


def _why_unreadable(path: Path, kind: str) -> str:
    if not path.exists():
        return f"no such {kind}; check the list file and data_root"
    return f"not a readable {kind}; fetch or export it again"

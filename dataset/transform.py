"""From images and masks to what the network takes: random changes for training, one resize for evaluation."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch.nn.functional import interpolate

from util.image import MEAN, ImageRule, resize_image, resize_mask
from util.pixels import IGNORE

Image = NDArray[np.float32]  # (h, w, 3) RGB, 0 to 255
Mask = NDArray[np.uint8]  # (h, w)

FILL = [float(value) for value in MEAN]  # what lies outside an image; 0 after normalising
PASTE_TRIES = 8
CROP_TRIES = 32  # a first crop and up to 31 more, as the released code counts


@dataclass(frozen=True)
class Augmentation:
    """Random scale, rotation, blur, flip and crop of one image and its mask.

    `augment`: "squash" resizes to the size instead of cropping (HDMNet); "none" does that alone, changing nothing at
    random, with Pillow's averaging (HSNet, DCAMA).
    """

    height: int  # of the crop, pixels
    width: int
    scale: tuple[float, float]  # range of the factor
    rotate: tuple[float, float]  # range of the angle, degrees
    keep_object: float  # fraction of the mask's pixels of value 1 that a crop should keep
    augment: Literal["crop", "squash", "none"] = "crop"

    def __call__(self, image: Image, mask: Mask, rng: random.Random) -> tuple[Image, Mask]:
        """Image (height, width, 3) and mask (height, width); fresh borders are the mean colour and 255.

        A mask of another size, that of an image before it was reduced, first takes the image's.
        """
        if self.augment == "none":
            return squash_image(image, self.height, self.width), squash_mask(mask, self.height, self.width)
        if mask.shape != image.shape[:2]:
            mask = resize_mask(mask, *image.shape[:2])
        image, mask = scale(image, mask, rng.uniform(*self.scale))
        if rng.random() < 0.5:
            image, mask = rotate(image, mask, rng.uniform(*self.rotate))
        if rng.random() < 0.5:
            image = np.asarray(cv2.GaussianBlur(image, (5, 5), 0), np.float32)
        if rng.random() < 0.5:
            image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        if self.augment == "squash":
            return resize_image(image, self.height, self.width), resize_mask(mask, self.height, self.width)
        total = int((mask == 1).sum())
        image, mask = pad(image, mask, self.height, self.width)
        top, left = self._crop_corner(mask == 1, total, rng)
        window = slice(top, top + self.height), slice(left, left + self.width)
        return image[window], mask[window]

    def _crop_corner(self, is_object: NDArray[np.bool_], total: int, rng: random.Random) -> tuple[int, int]:
        """The first of the random corners that keeps enough of the object, else the last."""
        top = left = 0
        for _ in range(CROP_TRIES):
            top = rng.randint(0, is_object.shape[0] - self.height)
            left = rng.randint(0, is_object.shape[1] - self.width)
            kept = int(is_object[top : top + self.height, left : left + self.width].sum())
            if kept >= self.keep_object * total:
                break
        return top, left


def fit_image(image: Image, size: int, rule: ImageRule, shape: tuple[int, ...] | None = None) -> Image:
    """An image (size, size, 3) for evaluation as a method's rule says.

    `shape` is (h, w) of the image before it was reduced, which says how much of the square is padding.
    """
    resize = squash_image if rule.resample == "antialias" else resize_image
    fill = FILL if rule.padding == "mean" else (0, 0, 0)
    return np.asarray(_frame(resize(image, *_fitted(shape or image.shape, size, rule)), size, fill), np.float32)


def fit_mask(mask: Mask, size: int, rule: ImageRule, fill: int = IGNORE) -> Mask:
    """A mask (size, size) for evaluation as a method's rule says; padding is `fill`, 255."""
    resize = squash_mask if rule.resample == "antialias" else resize_mask
    return np.asarray(_frame(resize(mask, *_fitted(mask.shape, size, rule)), size, fill), np.uint8)


def pad_to_square(mask: Mask) -> Mask:
    """A mask (h, w) at the top left of 255 (L, L), L the longer side: where scores of padded images are judged."""
    return np.asarray(_frame(mask, max(mask.shape), IGNORE), np.uint8)


def _fitted(shape: tuple[int, ...], size: int, rule: ImageRule) -> tuple[int, int]:
    """Height and width of an image in the square: if padded, its longer side, both cut to multiples of 8 (as BAM)."""
    if rule.fit == "square":
        return size, size
    height, width = (max(int(side * (size / max(shape[:2]))) // 8 * 8, 8) for side in shape[:2])
    return height, width


def _frame(values: NDArray[Any], size: int, fill: float | Sequence[float]) -> NDArray[Any]:
    """Values (h, w[, 3]) at the top left of a square."""
    height, width = values.shape[:2]
    return cv2.copyMakeBorder(values, 0, size - height, 0, size - width, cv2.BORDER_CONSTANT, value=fill)


def without_ignored(mask: Mask) -> Mask:
    """A mask whose ignored pixels are background."""
    return np.where(mask == IGNORE, 0, mask).astype(np.uint8)


def squash_image(image: Image, height: int, width: int) -> Image:
    """Bilinear as Pillow has it, averaging where it makes smaller; the evaluation of HSNet and those after it."""
    squashed = PillowImage.fromarray(image.astype(np.uint8)).resize((width, height), PillowImage.Resampling.BILINEAR)
    return np.asarray(squashed, np.float32)


def squash_mask(mask: Mask, height: int, width: int) -> Mask:
    """Nearest as PyTorch has it."""
    return interpolate(torch.from_numpy(mask)[None, None], (height, width), mode="nearest")[0, 0].numpy()


def scale(image: Image, mask: Mask, factor: float) -> tuple[Image, Mask]:
    """Resize by a factor: bilinear image, nearest mask."""
    h, w = mask.shape
    height, width = max(round(h * factor), 1), max(round(w * factor), 1)
    return resize_image(image, height, width), resize_mask(mask, height, width)


def rotate(image: Image, mask: Mask, degrees: float) -> tuple[Image, Mask]:
    """Turn counter-clockwise about the centre, sizes kept: bilinear image, nearest mask."""
    h, w = mask.shape
    turn = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, 1)
    turned = cv2.warpAffine(image, turn, (w, h), flags=cv2.INTER_LINEAR, borderValue=FILL)
    turned_mask = cv2.warpAffine(mask, turn, (w, h), flags=cv2.INTER_NEAREST, borderValue=[IGNORE])
    return np.asarray(turned, np.float32), np.asarray(turned_mask, np.uint8)


def pad(image: Image, mask: Mask, height: int, width: int) -> tuple[Image, Mask]:
    """Put into the centre of a frame of at least height x width: mean colour around the image, 255 around the mask."""
    rows, columns = max(height - mask.shape[0], 0), max(width - mask.shape[1], 0)
    sides = rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    framed = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=FILL)
    framed_mask = cv2.copyMakeBorder(mask, *sides, cv2.BORDER_CONSTANT, value=[IGNORE])
    return np.asarray(framed, np.float32), np.asarray(framed_mask, np.uint8)


def paste(image: Image, mask: Mask, source: Image, source_mask: Mask, rng: random.Random) -> tuple[Image, Mask]:
    """Put the object of another image, its mask's value 1, over an image: what it covers is none of the image's object.

    Its longer side becomes 0.3 to 0.6 of the image's shorter one. Nothing is pasted where in every one of
    `PASTE_TRIES` random places more than half of the image's own object would be covered.
    """
    source_mask = resize_mask(source_mask, *source.shape[:2])
    left, top, width, height = cv2.boundingRect((source_mask == 1).astype(np.uint8))
    if not width:  # reduced away: the whole stands for it
        height, width = source_mask.shape
    box = slice(top, top + height), slice(left, left + width)
    factor = rng.uniform(0.3, 0.6) * min(mask.shape) / max(height, width)
    cut, shape = scale(source[box], source_mask[box], factor)
    own = mask == 1
    for _ in range(PASTE_TRIES):
        row, column = (rng.randint(0, whole - part) for whole, part in zip(mask.shape, shape.shape, strict=True))
        covered = np.zeros_like(own)
        covered[row : row + shape.shape[0], column : column + shape.shape[1]] = shape == 1
        if 2 * int((own & covered).sum()) <= int(own.sum()):
            image, mask = image.copy(), np.where(covered, 0, mask).astype(np.uint8)
            image[covered] = cut[shape == 1]
            break
    return image, mask


def fill_boxes(mask: Mask) -> Mask:
    """Replace every connected component (8 neighbours) of value 1 by its filled bounding box; 255 stays on top.

    Right and bottom edges are inclusive in the released code, so a box ends one pixel beyond its component.
    """
    boxes = np.zeros_like(mask)
    count, _, stats, _ = cv2.connectedComponentsWithStats((mask == 1).astype(np.uint8), connectivity=8)
    for component in range(1, count):
        left, top, width, height = stats[component, :4]
        boxes[top : top + height + 1, left : left + width + 1] = 1
    boxes[mask == IGNORE] = IGNORE
    return boxes

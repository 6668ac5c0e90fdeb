"""Masks of supports as they are given: binary or index images, or boxes."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from util.errors import UserError
from util.image import ImageSource
from util.mask import interpret_mask
from util.pixels import IGNORE

Box: TypeAlias = Sequence[float]  # left, top, right, bottom in pixels, the last two exclusive
# A binary mask; an index mask and the class in it that is meant; or boxes: one, a list, or an array (n, 4).
MaskSource: TypeAlias = ImageSource | tuple[ImageSource, int] | Box | Sequence[Box]


def object_mask(source: Any, size: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """The object (h, w) that a mask or boxes mark in an image of size (h, w): 1, 255 not to be judged, else 0.

    `where` names the image in the UserError that a misfit raises.
    """
    if source is None:
        raise UserError(f"{where}: has no mask; give one, or boxes")
    if (boxes := as_boxes(source, size)) is not None:
        return mask_from_boxes(boxes, size, where)
    wanted: int | None = None
    if isinstance(source, tuple):
        if len(source) != 2 or not isinstance(source[1], int | np.integer):
            raise UserError(f"{where}: a tuple for a mask is (index mask, class) or a box of four numbers")
        source, wanted = source[0], int(source[1])
    index, _, note, _ = interpret_mask(source)
    if note:
        warnings.warn(f"{where}: in its mask {note}", stacklevel=2)
    if index.shape != size:
        (height, width), (h, w) = size, index.shape
        raise UserError(f"{where}: is {width}x{height} as shown, but its mask is {w}x{h}; make them equal")
    classes = [value for value in np.unique(index).tolist() if value not in (0, IGNORE)]
    if wanted is None and len(classes) > 1:
        raise UserError(f"{where}: its mask has the classes {classes}; say which one is meant by (mask, class)")
    wanted = classes[0] if wanted is None and classes else wanted
    if wanted not in classes:
        raise UserError(f"{where}: its mask marks no object" + (f" of class {wanted}" if wanted else ""))
    return np.where(index == IGNORE, index, index == wanted).astype(np.uint8)


def as_lists(images: Any, masks: Any) -> tuple[list[ImageSource], list[MaskSource]]:
    """Images and masks as lists; a single image and its mask as lists of one."""
    if not is_single(images):
        return list(images), list(masks) if isinstance(masks, Iterable) else [masks]
    in_list = isinstance(masks, list) and len(masks) == 1 and not isinstance(masks[0], list | tuple)
    return [images], masks if in_list else [masks]


def is_single(images: Any) -> bool:
    """Whether this is one image, and no iterable of several; UserError where it is neither."""
    if isinstance(images, str | Path | Image.Image) or hasattr(images, "read"):
        return True
    if getattr(images, "ndim", 4) > 3 and isinstance(images, Iterable):
        return False
    if not isinstance(images, np.ndarray | Tensor):
        raise UserError(f"{type(images).__name__} instead of images; give files, PIL images, arrays or tensors")
    return True


def as_boxes(source: Any, size: tuple[int, ...]) -> list[Any] | None:
    """The boxes that a mask is given by in an image of size (h, w); None where it is an image."""
    if isinstance(source, np.ndarray | Tensor):
        is_mask = tuple(source.shape) == tuple(size) or source.ndim not in (1, 2) or source.shape[-1] != 4
        return None if is_mask else source.reshape(-1, 4).tolist()
    if not isinstance(source, list | tuple):
        return None
    if len(source) == 4 and all(isinstance(side, int | float | np.number) for side in source):
        return [source]
    are_boxes = isinstance(source, list) or all(np.ndim(box) == 1 for box in source)
    return list(source) if are_boxes else None


def mask_from_boxes(boxes: Sequence[Any], size: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """The mask (h, w) of boxes; UserError for one that is empty or outside of the image."""
    mask = np.zeros(size, np.uint8)
    for box in boxes:
        try:
            left, top, right, bottom = (round(float(side)) for side in box)
        except (TypeError, ValueError, OverflowError):
            left, top, right, bottom = (0, 0, 0, 0)
        if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
            box = " ".join(str(box).split())[:80]
            raise UserError(f"{where}: {box} is no box (left, top, right, bottom) within {size[1]}x{size[0]}")
        mask[top:bottom, left:right] = 1
    if not len(boxes):
        raise UserError(f"{where}: has no mask, nor any box; give one")
    return mask

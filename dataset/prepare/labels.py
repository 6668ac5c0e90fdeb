"""Class maps as the data sets keep them: palette PNGs, colour PNGs, SBD's MATLAB structures, COCO's shapes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dataset.prepare.files import Label, opened_image
from util.errors import UserError
from util.pixels import IGNORE

Colours = Mapping[tuple[int, int, int], int]
Shape = tuple[int, NDArray[np.bool_]]


def voc_colours() -> dict[tuple[int, int, int], int]:
    """The colours of PASCAL VOC's palette and the class of each: class bits 0, 3, 6 are red's highest, and so on."""
    colours = {}
    for value in range(256):
        channels = [sum(((value >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
        colours[(channels[0], channels[1], channels[2])] = value
    return colours


def read_label(path: Path, colours: Colours | None = None) -> Label:
    """Read a class map (H, W) from an image file: a palette's index, a grey value, or the class of a colour.

    `colours` (default: PASCAL VOC's) says which class a colour image's colours stand for. Given explicitly it also
    overrules the index of a palette image. UserError when the file is missing or damaged or holds another colour.
    """
    with opened_image(path) as image:
        if image.mode in ("P", "L", "1") and not (image.mode == "P" and colours):
            return np.array(image if image.mode != "1" else image.convert("L"), dtype=np.uint8)  # (H, W)
        if image.mode in ("I", "I;16", "I;16B"):
            wide = np.array(image)  # (H, W)
            if wide.min() < 0 or wide.max() > IGNORE:
                raise UserError(f"{path}: the value {wide.max()} is no class; classes are 1 to 254, 255 is ignored")
            return wide.astype(np.uint8)
        return _classes_of_colours(path, np.array(image.convert("RGB")), colours or voc_colours())


def _classes_of_colours(path: Path, image: NDArray[np.uint8], colours: Colours) -> Label:
    packed = image.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)  # (H, W)
    found, position = np.unique(packed, return_inverse=True)
    classes = np.zeros(len(found), dtype=np.uint8)
    for i, value in enumerate(found.tolist()):
        colour = (value >> 16, value >> 8 & 255, value & 255)
        if colour not in colours:
            raise UserError(f"{path}: the colour {colour} stands for no class")
        classes[i] = colours[colour]
    return classes[position].reshape(packed.shape)


def read_sbd(path: Path) -> Label:
    """Read the class map (H, W) of an SBD annotation, `GTcls.Segmentation`; UserError when missing or damaged."""
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        segmentation = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # a damaged file makes SciPy's reader fail in any way there is
        raise UserError(f"{path} is damaged: {type(error).__name__} while reading GTcls.Segmentation") from None
    if segmentation.ndim != 2 or segmentation.dtype != np.uint8:
        raise UserError(f"{path} is damaged: GTcls.Segmentation is {segmentation.dtype}{list(segmentation.shape)}")
    return np.ascontiguousarray(segmentation)


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a COCO segmentation (polygons, or run lengths as a list or packed) to a mask (height, width)."""
    if isinstance(segmentation, list):
        # four numbers would be taken for a box; fewer than three corners enclose nothing
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), dtype=np.bool_)
        runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = coco_mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    mask = coco_mask.decode(runs).astype(np.bool_)
    if mask.shape != (height, width):
        raise ValueError(f"run lengths of {mask.shape[1]}x{mask.shape[0]} in an image of {width}x{height}")
    return mask


def paint(height: int, width: int, shapes: Sequence[Shape]) -> Label:
    """Paint the masks of instances, (class, (height, width)), into one class map, the smaller instance on top.

    Of two instances of the same area the later stays on top.
    """
    label = np.zeros((height, width), dtype=np.uint8)
    for value, mask in sorted(shapes, key=lambda shape: -int(shape[1].sum())):
        label[mask] = value
    return label

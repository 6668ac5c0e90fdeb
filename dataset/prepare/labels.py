"""Class maps as the data sets keep them: index and colour images, SBD's MATLAB structures, COCO's shapes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dataset.prepare.annotations import RunLengths
from util.errors import UserError
from util.mask import Colours, InterpretedMask, Label, MaskKind, interpret_mask
from util.pixels import IGNORE

Shape = tuple[int, NDArray[np.bool_]]


def read_label(path: Path, colours: Colours | None = None, kind: MaskKind | None = None) -> Label:
    """Read a class map (H, W) to train on: a palette's index, a grey value, or the class of a colour; 255 is ignored.

    `colours` (default: PASCAL VOC's) says which class a colour stands for. UserError when the file is missing or
    damaged, and for what is no class: another colour, a shade between two. `kind` settles what a mask is.
    """
    mask = interpret_mask(path, kind, colours)
    check_hard(path, mask, kind)
    if kind is None and len(mask.color) == 1:
        raise UserError(f"{path}: the value {mask.color[0]} is no class; classes are 1 to 254, 255 is ignored")
    if kind is None and mask.color:
        raise UserError(f"{path}: the colour {mask.color} stands for no class; name it in labelmap.txt")
    return mask.label * np.uint8(IGNORE) if kind is None and mask.look == "binary" else mask.label


def check_hard(path: Path, mask: InterpretedMask, kind: MaskKind | None) -> None:
    """UserError for a mask with shades between object and background, which is not to be trained on."""
    if kind is None and mask.look in ("soft", "trimap"):
        raise UserError(f"{path}: {mask.note}; for training save it with hard edges as PNG, or give --mask binary")


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


def decode_segmentation(segmentation: list[list[float]] | RunLengths, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a COCO segmentation (polygons, or run lengths as a list or packed) to a mask (height, width)."""
    if isinstance(segmentation, RunLengths):
        return np.asarray(coco_mask.decode(segmentation.packed()), dtype=np.bool_)
    # pycocotools would take four numbers for a box; fewer than three corners enclose nothing
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), dtype=np.bool_)
    return np.asarray(coco_mask.decode(coco_mask.frPyObjects(polygons, height, width)).any(axis=2), dtype=np.bool_)


def paint(height: int, width: int, shapes: Sequence[Shape]) -> Label:
    """Paint the masks of instances, (class, (height, width)), into one class map, the smaller instance on top.

    Of two instances of the same area the later stays on top.
    """
    label = np.zeros((height, width), dtype=np.uint8)
    for value, mask in sorted(shapes, key=lambda shape: -int(shape[1].sum())):
        label[mask] = value
    return label

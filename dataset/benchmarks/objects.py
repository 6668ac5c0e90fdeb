"""Masks that are written as COCO's shapes, and images cropped to one object."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.benchmarks.base import ImageMaskStore
from dataset.prepare.annotations import RunLengths, decode_segmentation
from dataset.reading import Mask
from util.config import Config
from util.errors import UserError
from util.image import read_image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive


def union(shapes: Iterable[Any], size: tuple[int, int], source: str) -> Mask:
    """The mask (h, w) of all shapes of one image; UserError naming `source` for one that cannot be decoded."""
    mask = np.zeros(size, np.bool_)
    try:
        for shape in shapes:
            if isinstance(shape, dict):  # run lengths; packed ones may be bytes in a pickle
                counts = shape["counts"]
                shape = RunLengths(size=shape["size"], counts=counts.decode() if isinstance(counts, bytes) else counts)
            mask |= decode_segmentation(shape, *size)
    except Exception as error:  # whatever pycocotools makes of malformed run lengths or polygons
        reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise UserError(f"{source}: a mask of it cannot be decoded ({reason}); fetch the annotations again") from None
    return mask.astype(np.uint8)


class ObjectCropStore(ImageMaskStore, ABC):
    """Images cropped to one object each; a name is that of the image, #, and the object's number."""

    may_be_empty = True

    def image(self, name: str, max_side: int | None = None) -> NDArray[np.uint8]:
        left, top, right, bottom = self.box(name)
        return np.ascontiguousarray(read_image(self[name][0])[top:bottom, left:right])

    def size(self, name: str) -> tuple[int, int]:
        left, top, right, bottom = self.box(name)
        return bottom - top, right - left

    def box(self, name: str) -> Box:
        """The object's box, as far as it lies in the image."""
        height, width = super().size(name)
        left, top, right, bottom = self.raw_box(name)
        return max(left, 0), max(top, 0), min(right, width), min(bottom, height)

    def read(self, name: str, class_id: int) -> Mask:
        left, top, right, bottom = self.box(name)
        return union(self.shapes(name, class_id), super().size(name), name)[top:bottom, left:right]

    @abstractmethod
    def raw_box(self, name: str) -> Box:
        """The annotated box."""

    @abstractmethod
    def shapes(self, name: str, class_id: int) -> Iterable[Any]:
        """The shapes of a class's part in the object."""


def first_file(*paths: Path) -> Path:
    """The first path that is a file; UserError that names the last."""
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"{paths[-1]} is missing; unpack it there with python -m tools.prepare")


def require_hsnet(cfg: Config) -> None:
    """UserError unless episodes are drawn by the one protocol that draws objects."""
    if cfg.protocol != "hsnet":
        raise UserError(f"protocol: {cfg.protocol} draws images, but {cfg.data_set} has objects; use hsnet")

"""Pictures of one's own with their annotations, whatever the format they come in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags

from dataset.prepare.files import Label, opened_image
from dataset.prepare.labels import Colours, decode_segmentation, paint, read_label
from util.errors import UserError
from util.pixels import IGNORE

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class Picture(Protocol):
    """An image file and its annotation; `name` is its path without suffix below the source folder."""

    @property
    def name(self) -> str: ...

    @property
    def image(self) -> Path: ...

    def label(self) -> Label:
        """The class map (H, W), either of the image as it is shown or of its pixels as they are stored."""


@dataclass(frozen=True)
class Collection:
    """Pictures read from a source, and the names of its classes 1, 2, ...; the parts (train, val) where it has them."""

    classes: list[str]
    pictures: list[Picture]
    parts: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskPicture:
    """A picture annotated by an index or colour image; `numbers` gives the class of a value in it."""

    name: str
    image: Path
    mask: Path
    colours: Colours | None
    numbers: Mapping[int, int]

    def label(self) -> Label:
        values = read_label(self.mask, self.colours)
        table = np.zeros(256, dtype=np.uint8)
        table[IGNORE] = IGNORE
        for value, number in self.numbers.items():
            table[value] = number
        return table[values]


@dataclass(frozen=True)
class CocoPicture:
    """A picture annotated by COCO segmentations, (class, segmentation)."""

    name: str
    image: Path
    width: int
    height: int
    segmentations: list[tuple[int, Any]]

    def label(self) -> Label:
        try:
            shapes = [(value, decode_segmentation(item, self.height, self.width)) for value, item in self.segmentations]
        except Exception as error:  # whatever pycocotools makes of malformed run lengths or polygons
            raise UserError(f"{self.image} has a segmentation that cannot be decoded: {error}") from None
        return paint(self.height, self.width, shapes)


def is_image(path: Path) -> bool:
    """Whether the file has the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def upright_label(picture: Picture) -> Label:
    """The class map (H, W) of a picture as it is shown, turned if it was drawn on the pixels as they are stored.

    UserError when image or annotation is missing or damaged, or their sizes differ.
    """
    with opened_image(picture.image) as image:
        image.load()
        stored = (image.height, image.width)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    shown = stored[::-1] if orientation in _TURNS else stored
    label = picture.label()
    if label.shape == shown:
        return label
    if label.shape == stored:
        return np.ascontiguousarray(_TURNS[orientation](label))
    size, mask_size = (f"{shape[1]}x{shape[0]}" for shape in (shown, label.shape))
    raise UserError(f"{picture.image} is {size}, its annotation {mask_size}; make them equal")


# EXIF orientations that exchange width and height, and what shows such an image upright.
_TURNS = {
    5: lambda label: label.T,
    6: lambda label: np.rot90(label, -1),
    7: lambda label: np.rot90(label, 2).T,
    8: lambda label: np.rot90(label, 1),
}

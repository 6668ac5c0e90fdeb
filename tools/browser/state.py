"""What one tab of the page holds, and what is let in: uploads are checked, and their names are labels, never paths."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from prediction.evidence import Evidence
from prediction.predictor import SINGLE, Prediction, Predictor, object_mask
from util.errors import UserError
from util.image import RGB, open_image, read_image
from util.mask import interpret_mask
from util.pixels import IGNORE
from util.visualize import class_color, fit, fit_mask, overlay

Mask = NDArray[np.uint8]

CANVAS_SIDE = 1024  # pixels of the longer side of the image that is painted on
VIEW_SIDE = 640  # of a result on the page
NAME_LENGTH = 80


@dataclass(frozen=True)
class Limits:
    """How much a tab may hand over."""

    megapixels: float = 50
    supports: int = 20
    queries: int = 100


@dataclass
class Shot:
    """A support image, its class, and the object in it: (h, w), 1 object, 0 other, 255 not to be judged."""

    number: int  # by which the page knows it
    name: str
    image: RGB
    mask: Mask
    class_name: str

    @property
    def has_object(self) -> bool:
        return bool((self.mask == 1).any())


Support = dict[str, tuple[list[RGB], list[Mask]]]  # by class, its images and the object in each


class Answer(NamedTuple):
    """What was found in a query image."""

    name: str
    path: Path  # of the server's copy
    view: RGB  # the image as large as it is shown
    size: tuple[int, int]  # (h, w) of the image itself
    support: Support  # what was looked for
    evidence: Evidence
    seconds: float

    def prediction(self, predictor: Predictor, threshold: float, size: tuple[int, ...]) -> Prediction:
        """Masks and probabilities for any size (h, w)."""
        return predictor.prediction(self.evidence.names, self.evidence.scores, size).at(threshold)


@dataclass
class Session:
    """One tab: its supports, and the answers to its last question."""

    shots: list[Shot] = field(default_factory=list)
    current: int | None = None  # number of the shot on the canvas
    answers: list[Answer] = field(default_factory=list)
    counter: int = 0  # shots that there ever were
    examples: int = 0  # that were asked for

    @property
    def shot(self) -> Shot | None:
        """The one on the canvas."""
        return next((shot for shot in self.shots if shot.number == self.current), None)

    @property
    def class_names(self) -> list[str]:
        """In the order in which they first come up; class i has the value i + 1 in masks and its colour."""
        return list(dict.fromkeys(shot.class_name for shot in self.shots))

    def value(self, class_name: str) -> int:
        """Of a class in masks."""
        return self.class_names.index(class_name) + 1

    def add_shot(self, name: str, picture: RGB, limits: Limits, mask: Mask | None = None, of: str = "") -> None:
        """Take a support image, without an object unless a mask is given, and put it on the canvas."""
        if len(self.shots) >= limits.supports:
            raise UserError(f"{name}: there are {limits.supports} support images, and no more are taken; remove one")
        class_name = of or (self.shot.class_name if self.shot else SINGLE)
        mask = np.zeros(picture.shape[:2], np.uint8) if mask is None else mask
        self.counter += 1
        self.shots.append(Shot(self.counter, name, picture, mask, class_name))
        self.current = self.counter

    def remove_shot(self) -> None:
        """Remove the one on the canvas, where the last one takes its place."""
        self.shots = [shot for shot in self.shots if shot.number != self.current]
        self.current = self.shots[-1].number if self.shots else None

    def support(self) -> Support:
        """The supports by class; UserError where there is none, or one without an object."""
        if not self.shots:
            raise UserError("there is no support image yet; drop one on the left and paint the object in it")
        classes: Support = {name: ([], []) for name in self.class_names}
        for shot in self.shots:
            if not shot.has_object:
                raise UserError(f"{shot.name}: nothing is painted in it; paint the object, or remove the image")
            images, masks = classes[shot.class_name]
            images.append(shot.image)
            masks.append(shot.mask)
        return classes


def read_upload(path: str | Path, limits: Limits) -> RGB:
    """An uploaded image (h, w, 3); UserError, by its name alone, for what is none and for too many pixels."""
    name = Path(path).name
    try:
        with open_image(path) as header:
            width, height = header.size
    except UserError as error:
        if "decompression bomb" in str(error):
            raise UserError(f"{name}: has far more than {limits.megapixels:g} megapixels; make it smaller") from None
        raise UserError(f"{name}: is not an image, or a damaged one; take a JPEG, PNG or WebP file") from None
    if width * height > limits.megapixels * 1e6:
        raise UserError(
            f"{name}: {width}x{height} are {width * height / 1e6:.0f} megapixels, and at most {limits.megapixels:g} "
            "are taken; make it smaller"
        )
    with named(path, name):
        return read_image(path)


@contextmanager
def named(path: str | Path, name: str) -> Iterator[None]:
    """Within it, UserErrors speak of a file by its name instead of the server's path."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


def read_painted(path: str | Path, shot: Shot, limits: Limits) -> Mask:
    """The object that an uploaded mask marks in a shot's image; UserError as for images, and where it misfits."""
    read_upload(path, limits)  # is it an image at all, and of a size to be read
    name = Path(path).name
    with named(path, name):
        index = interpret_mask(path).label
    values = [value for value in np.unique(index).tolist() if value not in (0, IGNORE)]
    if len(values) > 1:
        raise UserError(f"{name}: marks {len(values)} classes; give a mask of the one object, white on black")
    return object_mask(index, shot.image.shape[:2], shot.name)


def safe_name(name: str, taken: Collection[str]) -> str:
    """A name for files in the download, made of an upload's: letters, digits, `.`, `-`, `_`, and none of `taken`."""
    plain = re.sub(r"[^\w.-]+", "_", Path(name).name).lstrip(".")[-NAME_LENGTH:] or "image"
    number, free = 1, plain
    while free in taken:
        number += 1
        free = f"{Path(plain).stem}_{number}{Path(plain).suffix}"
    return free


def on_canvas(picture: RGB) -> RGB:
    """An image as it is painted on: at most CANVAS_SIDE pixels."""
    return fit(picture, CANVAS_SIDE, CANVAS_SIDE) if max(picture.shape) > CANVAS_SIDE else picture


def painted(ink: RGB, shot: Shot) -> Mask:
    """The mask of a shot from what is painted over its image: RGBA (h', w', 4), opaque where the object is."""
    opaque = (ink[..., 3] > 127).astype(np.uint8)
    size = shot.image.shape[1::-1]
    return np.asarray(cv2.resize(opaque, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def thumbnail(picture: RGB, mask: Mask, value: int, side: int = 200) -> RGB:
    """A support image with its object in the colour of its class."""
    small = fit(picture, side, side)
    mask = fit_mask(mask, small)
    return overlay(small, np.where(mask == 1, value, mask))


def css_color(value: int) -> str:
    """The colour of a class as CSS has it."""
    return "#{:02x}{:02x}{:02x}".format(*class_color(value))

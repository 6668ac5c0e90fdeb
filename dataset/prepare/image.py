"""Images of one's own with their annotations, whatever the format they come in."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np

from dataset.prepare.annotations import RunLengths
from dataset.prepare.files import check_image
from dataset.prepare.labels import decode_segmentation, paint, read_label
from util.errors import UserError
from util.image import SIDEWAYS, image_size, open_image, orientation, shown_size, upright
from util.mask import Colours, Label, MaskKind
from util.pixels import IGNORE

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
Size = tuple[int, int]  # height, width


class AnnotatedImage(Protocol):
    """An image file and its annotation; `name` is its path without suffix below the source folder."""

    @property
    def name(self) -> str: ...

    @property
    def image(self) -> Path: ...

    def size(self) -> Size | None:
        """The size that was annotated, without decoding anything; None where that is the image's as it is shown."""

    def label(self, size: Size) -> Label:
        """The class map of that size, either of the image as it is shown or of its pixels as they are stored."""


@dataclass(frozen=True)
class Collection:
    """Images read from a source, and the names of its classes 1, 2, ...; the parts (train, val) where it has them."""

    classes: list[str]
    images: Sequence[AnnotatedImage]
    parts: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskImage:
    """An image annotated by an index or colour image; `numbers` gives the class of a value in it."""

    name: str
    image: Path
    mask: Path
    colours: Colours | None
    numbers: Mapping[int, int]
    kind: MaskKind | None = None

    def size(self) -> Size:
        return image_size(self.mask)

    def label(self, size: Size) -> Label:
        table = np.zeros(256, dtype=np.uint8)
        table[IGNORE] = IGNORE
        for value, number in self.numbers.items():
            table[value] = number
        return table[read_label(self.mask, self.colours, self.kind)]


@dataclass(frozen=True)
class CocoImage:
    """An image annotated by COCO segmentations, (class, segmentation)."""

    name: str
    image: Path
    height: int
    width: int
    segmentations: list[tuple[int, list[list[float]] | RunLengths]]

    def size(self) -> Size:
        return self.height, self.width

    def label(self, size: Size) -> Label:
        try:
            shapes = [(value, decode_segmentation(item, *size)) for value, item in self.segmentations]
        except Exception as error:  # whatever pycocotools makes of malformed polygons
            raise UserError(f"{self.image} has a segmentation that cannot be decoded: {error}") from None
        return paint(*size, shapes)


def is_image(path: Path) -> bool:
    """Whether the file has the suffix of an image and is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_below(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files of these suffixes, sorted, without those that are hidden or in hidden folders."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    shown = sorted(path for path in found if not any(part.startswith(".") for part in path.parts))
    return [folder / path for path in shown if (folder / path).is_file()]


def by_stem(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by their path below a folder without suffix, accents composed; UserError for two of one name."""
    found: dict[str, Path] = {}
    for path in paths:
        name = normalize("NFC", str(path.relative_to(folder).with_suffix("")))
        if found.setdefault(name, path) != path:
            raise UserError(f"{path}: {found[name].name} beside it has the same name; remove or rename one")
    return found


def find_image(stated: str, folders: Iterable[Path]) -> Path | None:
    """The file that an export means: a path of any system or a URL, below one of the folders or by its name alone."""
    plain = re.sub(r"^file:(//[^/\\]*(?=/))?", "", stated.strip())
    spellings = dict.fromkeys((stated, plain, unquote(plain)))
    spellings |= dict.fromkeys(text.replace("\\", "/") for text in list(spellings))
    spellings |= dict.fromkeys(normalize(form, text) for form in ("NFC", "NFD") for text in list(spellings))
    names = [
        *spellings,
        *(part for name in spellings for part in re.split(r"[/?=&]", name)[::-1] if is_image(Path(part))),
    ]
    places = (folder / name for name in names if name and "\0" not in name for folder in folders)
    return next((place for place in places if _is_file(place)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def check_size(picture: AnnotatedImage) -> tuple[Size, Size, int]:
    """Size as shown, size as annotated, and EXIF orientation, from headers alone; UserError for sizes that differ."""
    with open_image(picture.image) as image:
        shown, turn = shown_size(image), orientation(image)
    size = picture.size() or shown
    if size not in (shown, shown[::-1] if turn in SIDEWAYS else shown):
        (height, width), (h, w) = shown, size
        raise UserError(f"{picture.image} is {width}x{height}, its annotation {w}x{h}; make them equal")
    return shown, size, turn


def upright_label(picture: AnnotatedImage) -> Label:
    """The class map (H, W) of an image as it is shown, turned if it was drawn on the pixels as they are stored.

    UserError when image or annotation is missing or damaged, or their sizes differ.
    """
    check_image(picture.image)
    shown, size, turn = check_size(picture)
    label = picture.label(size)
    return label if size == shown else upright(label, turn)

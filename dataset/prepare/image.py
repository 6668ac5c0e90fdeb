"""Images of one's own with their annotations, whatever the format they come in."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np

from dataset.prepare.annotations import RunLengths
from dataset.prepare.files import check_image
from dataset.prepare.labels import decode_segmentation, paint, read_label
from util.errors import UserError
from util.image import SIDEWAYS, image_size, is_image, open_image, orientation, shown_size, upright
from util.mask import Colours, Label, MaskKind
from util.pixels import IGNORE
from util.tiff import is_raster, raster_size

Size = tuple[int, int]  # height, width
SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,8}$")


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


def files_below(folder: Path, suffix: str | None = None) -> list[Path]:
    """The images, or the files of a suffix, sorted, without those that are hidden or in hidden folders."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if suffix in (None, path.suffix.lower()))
    shown = [folder / path for path in found if not any(part.startswith(".") for part in path.parts)]
    return [path for path in shown if path.is_file() and (suffix or is_image(path))]


def composed(path: Path | str) -> str:
    """A name with its accents composed, as only macOS does not write them."""
    return normalize("NFC", str(path))


def by_stem(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by their path below a folder without suffix, accents composed; UserError for two of one name."""
    found: dict[str, Path] = {}
    for path in paths:
        name = composed(path.relative_to(folder).with_suffix(""))
        if found.setdefault(name, path) != path:
            raise UserError(f"{path}: {found[name].name} beside it has the same name; remove or rename one")
    return found


def spellings(names: Iterable[str]) -> dict[str, str]:
    """Every name by itself, and by its lower case where that is the only one of it."""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.casefold(), []).append(name)
    same = {lower: found[0] for lower, found in folded.items() if len(found) == 1}
    return same | {name: name for found in folded.values() for name in found}


def find_image(stated: str, folders: Iterable[Path]) -> Path | None:
    """The file that an export means: a path of any system or a URL, below one of the folders or by its name alone."""
    plain = re.sub(r"^file:(//[^/\\]*(?=/))?", "", stated.strip())
    names = dict.fromkeys((stated, plain, unquote(plain)))
    names |= dict.fromkeys(text.replace("\\", "/") for text in list(names))
    names |= dict.fromkeys(normalize(form, text) for form in ("NFC", "NFD") for text in list(names))
    parts = [part for name in names for part in re.split(r"[/?=&]", name)[::-1] if SUFFIX.search(part)]
    folders = list(folders)
    for place in (folder / name for name in [*names, *parts] if name and "\0" not in name for folder in folders):
        with suppress(OSError):  # a name that is too long
            if place.is_file():
                return place
    return next((path for folder in folders for part in parts if (path := _other_case(folder, part))), None)


def _other_case(folder: Path, name: str) -> Path | None:
    """The only file of a folder that has this name in other upper and lower case."""
    found = _by_lower_case(folder, folder.stat().st_mtime_ns) if folder.is_dir() else {}
    return found.get(composed(name).casefold())


@lru_cache(maxsize=8)
def _by_lower_case(folder: Path, _changed: int) -> dict[str, Path]:
    paths = {composed(path.name): path for path in folder.iterdir()}
    return {lower: paths[name] for lower, name in spellings(paths).items() if lower == name.casefold()}


def check_size(picture: AnnotatedImage) -> tuple[Size, Size, int]:
    """Size as shown, size as annotated, and EXIF orientation, from headers alone; UserError for sizes that differ."""
    if is_raster(picture.image):
        shown, turn = raster_size(picture.image), 1
    else:
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

"""Images of one's own with their annotations, whatever the format they come in."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np

from dataset.prepare.files import check_image, is_intact_png, run_all, write_label
from util.errors import UserError, printable
from util.image import SIDEWAYS, is_image, open_image, orientation, shown_size, upright
from util.mask import Colours, InterpretedMask, Label, MaskKind, interpret_mask
from util.pixels import IGNORE
from util.tiff import is_raster, raster_size

Size = tuple[int, int]  # height, width
SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,8}$")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and its annotation."""

    name: str  # path without suffix below the source folder
    image: Path
    size: Size | None  # that was annotated; None where that is the image's as it is shown
    draw: Callable[[Size], Label]  # the class map of that size, of the image as it is shown or of its stored pixels


@dataclass(frozen=True)
class Collection:
    """Images read from a source, and the names of its classes 1, 2, ...; the parts (train, val) where it has them."""

    classes: list[str]
    images: Sequence[AnnotatedImage]
    parts: dict[str, set[str]] = field(default_factory=dict)


def renumbered(item: AnnotatedImage, numbers: Mapping[int, int], name: str | None = None) -> AnnotatedImage:
    """The same with the classes of `numbers`, and of another name if given; other values become background."""
    table = np.zeros(IGNORE + 1, np.uint8)
    table[IGNORE] = IGNORE
    for value, number in numbers.items():
        table[value] = number
    return replace(item, name=name or item.name, draw=partial(_look_up, table, item.draw))


def _look_up(table: Label, draw: Callable[[Size], Label], size: Size) -> Label:
    return table[draw(size)]


def mask_image(
    name: str, image: Path, mask: Path, size: Size, kind: MaskKind | None = None, colours: Colours | None = None
) -> AnnotatedImage:
    """An image annotated by an index or colour image of `size`; its classes are the values in it."""
    return AnnotatedImage(name, image, size, partial(_mask_label, mask, kind, colours))


def _mask_label(mask: Path, kind: MaskKind | None, colours: Colours | None, _: Size) -> Label:
    return interpret_mask(mask, kind, colours).label


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


def check_classes(count: int, where: Path) -> None:
    """UserError for annotations of no class, or of more than masks can tell apart."""
    if not count:
        raise UserError(f"{where}: marks no object; annotate one")
    if count >= IGNORE:
        raise UserError(f"{where}: has {count} classes, and masks tell at most {IGNORE - 1} apart; leave some out")


def values_of(label: Label) -> list[int]:
    """The classes in a label."""
    return [value for value in np.unique(label).tolist() if value not in (0, IGNORE)]


def files_below(folder: Path, suffix: str | None = None) -> list[Path]:
    """The images, or the files of a suffix, sorted, without those that are hidden or in hidden folders."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if suffix in (None, path.suffix.lower()))
    shown = [folder / path for path in found if not any(part.startswith(".") for part in path.parts)]
    return [path for path in shown if path.is_file() and (suffix or is_image(path))]


def tell_left_out(images: Sequence[Path], lacking: str) -> None:
    """Say how many images are left out as they lack something."""
    if images:
        print(f"{len(images)} images without {lacking} are left out; the first is {printable(str(images[0]))}")


def composed(path: Path | str) -> str:
    """A name with its accents composed, as only macOS does not write them."""
    return normalize("NFC", str(path))


def by_stem(folder: Path) -> dict[str, Path]:
    """The images below a folder by their path without suffix, accents composed; UserError for two of one name."""
    found: dict[str, Path] = {}
    for path in files_below(folder):
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


def check_size(item: AnnotatedImage) -> tuple[Size, Size, int]:
    """Size as shown, size as annotated, and EXIF orientation, from headers alone; UserError for sizes that differ."""
    if is_raster(item.image):
        shown, turn = raster_size(item.image), 1
    else:
        with open_image(item.image) as image:
            shown, turn = shown_size(image), orientation(image)
    size = item.size or shown
    if size not in (shown, shown[::-1] if turn in SIDEWAYS else shown):
        (height, width), (h, w) = shown, size
        raise UserError(f"{item.image} is {width}x{height}, its annotation {w}x{h}; make them equal")
    return shown, size, turn


def upright_label(item: AnnotatedImage) -> Label:
    """The class map (H, W) of an image as it is shown, turned if it was drawn on the pixels as they are stored.

    UserError when image or annotation is missing or damaged, or their sizes differ.
    """
    check_image(item.image)
    shown, size, turn = check_size(item)
    label = item.draw(size)
    return label if size == shown else upright(label, turn)


def make_masks(tasks: Sequence[tuple[AnnotatedImage, Path]], title: str, workers: int) -> None:
    """Write the class map of every image unless it is there and intact; UserError as in `upright_label`."""
    written = run_all(_make_mask, tasks, f"{title}masks", workers, "annotations")
    print(f"{title}{sum(written)} of {len(tasks)} masks written, the others were there")


def _make_mask(task: tuple[AnnotatedImage, Path]) -> bool:
    item, mask = task
    if is_intact_png(mask) and item.image.is_file():
        return False
    write_label(mask, upright_label(item))
    return True

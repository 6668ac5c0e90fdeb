"""Support pictures of one's own: a folder of pictures with masks, LabelMe files or boxes."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.prepare.files import Label, raise_if_any
from dataset.prepare.labelme import read_labelme
from dataset.prepare.picture import Picture, is_image, upright_label
from dataset.prepare.sources import read_classes
from util.errors import UserError
from util.image import read_index
from util.pixels import IGNORE

Box = tuple[float, ...]  # left, top, right, bottom in pixels, the last two exclusive

SINGLE = "object"  # the name of a class where none is given
BOX_COLUMNS = ("left", "top", "right", "bottom")
MASK_ENDING = "_mask"  # name_mask.png is the mask of a picture that is itself name.png


class SupportClass(NamedTuple):
    """What shows one class."""

    name: str
    value: int  # by which masks mark it
    images: list[Path]
    masks: Sequence[Any]  # one per image: (h, w) with 1 the class, 255 not to be judged, 0 all else; or boxes


@dataclass(frozen=True)
class PairedPicture:
    """A picture and the index image that belongs to it."""

    image: Path
    mask: Path

    @property
    def name(self) -> str:
        return self.image.stem

    def label(self) -> Label:
        return read_index(self.mask)


def read_support(folder: Path, boxes: Path | None = None) -> list[SupportClass]:
    """The classes that a folder shows; a subfolder for each class, or one folder for all.

    In a folder `name.jpg` goes with the mask `name.png` (or `name_mask.png`), or with LabelMe's `name.json`, whose
    labels are the classes. Every value of the masks is a class, named by a file `classes.txt`; 255 is not to be judged
    unless it is the only value. `boxes` replaces all that: a CSV file with the columns file, left, top, right, bottom
    and perhaps class. Raises UserError for whatever is missing, unreadable or contradicts itself.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of support pictures")
    if boxes:
        return _read_boxes(boxes, folder)
    if _files(folder):
        return _read_folder(folder)
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not subfolders:
        raise UserError(f"{folder}: no pictures; put in name.jpg with name.png or name.json, or a subfolder per class")
    classes = []
    for value, subfolder in enumerate(subfolders, 1):
        found = _read_folder(subfolder)
        if len(found) > 1:
            names = ", ".join(item.name for item in found)
            raise UserError(f"{subfolder}: marks {names}, but a subfolder is one class; put the pictures into {folder}")
        classes.append(found[0]._replace(name=subfolder.name, value=value))
    return classes


def select(support: Sequence[SupportClass], wanted: Sequence[str]) -> list[SupportClass]:
    """The classes of these names or values; UserError for one that is not there."""
    chosen = [item for item in support if {item.name, str(item.value)} & set(wanted)]
    known = {word for item in support for word in (item.name, str(item.value))}
    if unknown := [word for word in wanted if word not in known]:
        names = ", ".join(f"{item.name} ({item.value})" for item in support)
        raise UserError(f"class {unknown[0]!r} is not among those of the supports: {names}")
    return chosen


def _files(folder: Path) -> list[Path]:
    """Pictures, masks and JSON files."""
    return sorted(
        path
        for path in folder.iterdir()
        if (is_image(path) or path.suffix == ".json") and path.is_file() and not path.name.startswith(".")
    )


def _read_folder(folder: Path) -> list[SupportClass]:
    files = _files(folder)
    if not files:
        raise UserError(f"{folder}: no pictures; put in name.jpg with name.png, or with LabelMe's name.json")
    annotations = [path for path in files if path.suffix == ".json"]
    pairs, complaints = pair_masks([path for path in files if path.suffix != ".json"])
    if annotations and pairs:
        raise UserError(
            f"{folder}: {pairs[0].mask.name} is a mask, {annotations[0].name} of LabelMe; take one kind away"
        )
    if annotations:
        collection = read_labelme(folder, annotations, None)
        return _by_class(collection.pictures, dict(enumerate(collection.classes, 1)))
    raise_if_any(complaints, "support pictures")
    names = folder / "classes.txt"
    return _by_class(pairs, read_classes(names) if names.is_file() else {})


def pair_masks(images: Sequence[Path]) -> tuple[list[PairedPicture], list[str]]:
    """Find the mask of every picture of one folder by the names; and a complaint for each that is left alone."""
    there = set(images)
    masks: dict[Path, Path] = {}
    for image in images:
        candidates = [image.with_suffix(".png"), image.with_name(f"{image.stem}{MASK_ENDING}.png")]
        mask = next((path for path in candidates if path in there and path != image), None)
        if mask:
            masks[image] = mask
    complaints = [
        f"{image}: has no mask; put {image.stem}{MASK_ENDING if image.suffix == '.png' else ''}.png beside it"
        for image in images
        if image not in masks and image not in masks.values()
    ]
    owners: dict[Path, Path] = {}
    for image, mask in masks.items():
        if owners.setdefault(mask, image) != image:
            complaints.append(f"{image}: {owners[mask].name} has the same mask {mask.name}; rename one")
    return [PairedPicture(image, mask) for image, mask in masks.items() if image not in owners], complaints


def _by_class(pictures: Sequence[Picture], names: dict[int, str]) -> list[SupportClass]:
    shown: dict[int, list[tuple[Path, Label]]] = {}
    complaints = []
    for picture in pictures:
        try:
            label = upright_label(picture)
        except UserError as error:
            complaints.append(str(error))
            continue
        values = [value for value in np.unique(label).tolist() if value not in (0, IGNORE)]
        if not values:
            complaints.append(f"{picture.image}: its annotation marks no object")
        for value in values:
            mask = np.where(label == IGNORE, IGNORE, label == value).astype(np.uint8)
            shown.setdefault(value, []).append((picture.image, mask))
    raise_if_any(complaints, "support pictures")
    names = names or {value: SINGLE if len(shown) == 1 else f"class_{value}" for value in shown}
    if nameless := sorted(shown.keys() - names.keys()):
        raise UserError(
            f"{pictures[0].image.parent / 'classes.txt'}: has no name for the value {nameless[0]} of the masks"
        )
    return [
        SupportClass(names[value], value, [image for image, _ in pairs], [mask for _, mask in pairs])
        for value, pairs in sorted(shown.items())
    ]


def _read_boxes(path: Path, folder: Path) -> list[SupportClass]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot read the boxes: {error}") from error
    boxes: dict[str, dict[Path, list[Box]]] = {}
    for line, row in enumerate(rows, 2):
        try:
            box = tuple(float(row[side]) for side in BOX_COLUMNS)
            image = folder / row["file"]
        except (KeyError, TypeError, ValueError):
            box = ()
        if not box or not all(map(isfinite, box)):
            wanted = ",".join(("file", *BOX_COLUMNS))
            raise UserError(f"{path}:{line}: should be {wanted} and perhaps class, with that as the first line")
        boxes.setdefault(row.get("class") or SINGLE, {}).setdefault(image, []).append(box)
    if not boxes:
        raise UserError(f"{path}: no boxes; should be lines of {','.join(('file', *BOX_COLUMNS))} and perhaps class")
    return [
        SupportClass(name, value, list(boxes[name]), list(boxes[name].values()))
        for value, name in enumerate(sorted(boxes), 1)
    ]

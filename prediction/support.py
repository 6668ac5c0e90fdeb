"""Support images of one's own: a folder of images with masks, LabelMe files or boxes."""

import csv
import io
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.prepare.files import raise_if_any
from dataset.prepare.image import AnnotatedImage, check_classes, files_below, find_image, upright_label, values_of
from dataset.prepare.pairs import (
    MASK_ENDING,
    SINGLE,
    files_of,
    folders_of,
    name_of_class,
    read_class_folders,
    read_pairs,
)
from dataset.prepare.sources import layout_of, read_source
from util.errors import UserError, printable
from util.files import read_text
from util.mask import MaskKind
from util.pixels import IGNORE

Box = tuple[float, ...]  # left, top, right, bottom in pixels, the last two exclusive

BOX_COLUMNS = ("left", "top", "right", "bottom")
COLUMNS = ("file", *BOX_COLUMNS, "class")  # the last may be missing


class SupportClass(NamedTuple):
    """What shows one class."""

    name: str
    value: int  # by which masks mark it
    images: list[Any]  # files, as paths or open
    masks: list[Any]  # one per image: (h, w) with 1 the class, 255 not to be judged, 0 all else; or boxes


def read_support(folder: Path, boxes: Path | None = None, kind: MaskKind | None = None) -> list[SupportClass]:
    """The classes that a folder shows; a subfolder for each class, or one folder for all.

    In a folder `name.jpg` goes with the mask `name.png` (or `name_mask.png`), or with LabelMe's `name.json`, whose
    labels are the classes. Every value of the masks is a class, named by a file `classes.txt`; 255 is not to be judged
    unless it is the only value; `kind` says what masks are where that cannot be seen. What `tools.prepare custom` takes
    is taken too: COCO's JSON, and images and masks in folders of their own. `boxes` replaces all that: a CSV file with
    the columns file, left, top, right, bottom and perhaps class. Raises UserError for whatever is missing, unreadable
    or contradicts itself.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of support images")
    if boxes:
        return read_boxes(boxes, folder)
    subfolders = folders_of(folder)
    files = files_of(folder)
    annotations = [path for path in files if path.suffix.lower() == ".json"]
    if layout_of(folder) or annotations:
        images = sorted(set(files) - set(annotations), key=lambda path: (len(path.stem), path.suffix.lower() == ".png"))
        stems = [path.stem.removesuffix(MASK_ENDING) for path in images]
        if annotations and (masks := [path for number, path in enumerate(images) if stems[number] in stems[:number]]):
            raise UserError(
                f"{folder}: {masks[0].name} is a mask, {annotations[0].name} an annotation; remove one kind"
            )
        collection = read_source(folder, None, 1, kind)
        return _by_class(collection.images, dict(enumerate(collection.classes, 1)))
    filled = [path for path in subfolders if files_below(path)]
    if files and filled:
        raise UserError(f"{folder}: holds {files[0].name} and images in {filled[0].name}/; leave one kind there")
    if not files and not filled:
        raise UserError(f"{folder}: no images; put in name.jpg with name.png or name.json, or a subfolder per class")
    return _by_class(*(read_pairs(folder, kind) if files else read_class_folders(folder, subfolders, kind)))


def select(support: Sequence[SupportClass], wanted: Sequence[str]) -> list[SupportClass]:
    """The classes of these names or values; UserError for one that is not there."""
    chosen = [item for item in support if {item.name, str(item.value)} & set(wanted)]
    known = {word for item in support for word in (item.name, str(item.value))}
    if unknown := [word for word in wanted if word not in known]:
        names = ", ".join(f"{item.name} ({item.value})" for item in support)
        raise UserError(f"class {unknown[0]!r} is not among those of the supports: {names}")
    return chosen


def _by_class(annotated: Sequence[AnnotatedImage], names: dict[int, str]) -> list[SupportClass]:
    support = {value: SupportClass(name, value, [], []) for value, name in sorted(names.items())}
    complaints = []
    for item in annotated:
        try:
            label = upright_label(item)
        except UserError as error:
            complaints.append(str(error))
            continue
        if not (values := values_of(label)):
            complaints.append(f"{item.image}: its annotation marks no object")
        for value in values:
            support[value].images.append(item.image)
            support[value].masks.append(np.where(label == IGNORE, IGNORE, label == value).astype(np.uint8))
    raise_if_any(complaints, "support images")
    return [item for item in support.values() if item.images]


def read_boxes(path: Path, folder: Path) -> list[SupportClass]:
    """The classes of a CSV file of boxes in images below a folder; UserError names the line that is wrong."""
    wanted = ",".join(COLUMNS[:-1])
    boxes: dict[str, dict[Path, list[Box]]] = {}
    reader = csv.reader(io.StringIO(read_text(path, "CSV file")), skipinitialspace=True)
    columns: list[str] = []
    line = 1
    try:
        for row in reader:
            start, line = line, reader.line_num + 1
            fields = [field.strip() for field in row]
            if not any(fields):
                continue
            if not columns:
                columns = fields
                if "file" in fields and (unknown := [name for name in fields if name not in COLUMNS]):
                    what = f"the column {unknown[0]!r} is not known"
                    raise UserError(f"{path}:{start}: {what}; should be {wanted} and perhaps class")
                continue
            record = dict(zip(columns, fields, strict=False))
            box = _box([record.get(side, "") for side in BOX_COLUMNS])
            file = record.get("file", "")
            if box is None or len(record) < len(fields) or not file or printable(file) != file:
                raise UserError(f"{path}:{start}: should be {wanted} and perhaps class, with that as the first line")
            image = find_image(file, [folder]) or folder / file
            name = name_of_class(record.get("class") or SINGLE, f"{path}:{start}")
            boxes.setdefault(name, {}).setdefault(image, []).append(box)
    except csv.Error as error:
        raise UserError(f"{path}:{line}: cannot read the boxes: {error}; correct the line") from None
    if not boxes:
        raise UserError(f"{path}: no boxes; should be lines of {wanted} and perhaps class")
    check_classes(len(boxes), path)
    return [
        SupportClass(name, value, list(boxes[name]), list(boxes[name].values()))
        for value, name in enumerate(sorted(boxes), 1)
    ]


def _box(fields: Sequence[str]) -> Box | None:
    try:
        box = tuple(float(field) for field in fields)
    except ValueError:
        return None
    return box if all(map(isfinite, box)) else None

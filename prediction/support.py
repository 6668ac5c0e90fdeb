"""Support images of one's own: a folder of images with masks, LabelMe files or boxes."""

import csv
import io
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.lists import read_class_file
from dataset.prepare.annotations import class_name
from dataset.prepare.files import raise_if_any
from dataset.prepare.image import AnnotatedImage, Size, files_below, find_image, is_image, upright_label
from dataset.prepare.labelme import read_labelme
from util.errors import UserError, printable
from util.files import read_text
from util.mask import SETTLE, InterpretedMask, Label, MaskKind, interpret_mask
from util.pixels import IGNORE

Box = tuple[float, ...]  # left, top, right, bottom in pixels, the last two exclusive

SINGLE = "object"  # the name of a class where none is given
BOX_COLUMNS = ("left", "top", "right", "bottom")
MASK_ENDING = "_mask"  # name_mask.png is the mask of an image that is itself name.png


class SupportClass(NamedTuple):
    """What shows one class."""

    name: str
    value: int  # by which masks mark it
    images: list[Path]
    masks: Sequence[Any]  # one per image: (h, w) with 1 the class, 255 not to be judged, 0 all else; or boxes


@dataclass(frozen=True)
class PairedImage:
    """An image and the mask that belongs to it."""

    image: Path
    mask: Path
    content: InterpretedMask

    @property
    def name(self) -> str:
        return self.image.stem

    def size(self) -> Size:
        return self.content.label.shape[0], self.content.label.shape[1]

    def label(self, size: Size) -> Label:
        return self.content.label


def read_support(folder: Path, boxes: Path | None = None, kind: MaskKind | None = None) -> list[SupportClass]:
    """The classes that a folder shows; a subfolder for each class, or one folder for all.

    In a folder `name.jpg` goes with the mask `name.png` (or `name_mask.png`), or with LabelMe's `name.json`, whose
    labels are the classes. Every value of the masks is a class, named by a file `classes.txt`; 255 is not to be judged
    unless it is the only value; `kind` says what masks are where that cannot be seen. `boxes` replaces all that: a CSV
    file with the columns file, left, top, right, bottom and perhaps class. Raises UserError for whatever is missing,
    unreadable or contradicts itself.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of support images")
    if boxes:
        return read_boxes(boxes, folder)
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if files := _files(folder):
        if filled := [path for path in subfolders if files_below(path)]:
            raise UserError(f"{folder}: holds {files[0].name} and images in {filled[0].name}/; leave one kind there")
        return _read_folder(folder, kind)
    if not subfolders:
        raise UserError(f"{folder}: no images; put in name.jpg with name.png or name.json, or a subfolder per class")
    classes = []
    for value, subfolder in enumerate(subfolders, 1):
        name = _class_name(subfolder.name, str(subfolder))
        found = _read_folder(subfolder, kind)
        if len(found) > 1:
            names = ", ".join(item.name for item in found)
            raise UserError(f"{subfolder}: marks {names}, but a subfolder is one class; put the images into {folder}")
        classes.append(found[0]._replace(name=name, value=value))
    if len({item.name for item in classes}) < len(classes):
        raise UserError(f"{folder}: two subfolders are called the same but for blanks; rename one")
    return classes


def select(support: Sequence[SupportClass], wanted: Sequence[str]) -> list[SupportClass]:
    """The classes of these names or values; UserError for one that is not there."""
    chosen = [item for item in support if {item.name, str(item.value)} & set(wanted)]
    known = {word for item in support for word in (item.name, str(item.value))}
    if unknown := [word for word in wanted if word not in known]:
        names = ", ".join(f"{item.name} ({item.value})" for item in support)
        raise UserError(f"class {unknown[0]!r} is not among those of the supports: {names}")
    return chosen


def _class_name(text: str, where: str) -> str:
    try:
        return class_name(text)
    except ValueError as error:
        raise UserError(f"{where}: {error}; rename it") from None


def _files(folder: Path) -> list[Path]:
    """Images, masks and JSON files."""
    found = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if is_image(path) or path.suffix.lower() == ".json")


def _read_folder(folder: Path, kind: MaskKind | None) -> list[SupportClass]:
    files = _files(folder)
    if not files:
        raise UserError(f"{folder}: no images; put in name.jpg with name.png, or with LabelMe's name.json")
    annotations = [path for path in files if path.suffix.lower() == ".json"]
    pictures = [path for path in files if path not in annotations]
    if annotations:
        collection = read_labelme(folder, annotations, None)
        for path in pictures:
            if any(path != other and path.stem.removesuffix(MASK_ENDING) == other.stem for other in pictures):
                mask = path.with_suffix(".png").name
                raise UserError(f"{folder}: {mask} is a mask, {annotations[0].name} of LabelMe; remove one kind")
        return _by_class(collection.images, dict(enumerate(collection.classes, 1)))
    pairs, complaints = pair_masks(pictures, kind)
    names = folder / "classes.txt"
    return _by_class(pairs, read_class_file(names) if names.is_file() else {}, complaints)


def pair_masks(images: Sequence[Path], kind: MaskKind | None = None) -> tuple[list[PairedImage], list[str]]:
    """Find the mask of every image of one folder; and a complaint for each image without one, and each bad mask.

    `name_mask.png` is a mask by its name; of two files that are both called `name` the one that looks like one is.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        groups[image.stem.removesuffix(MASK_ENDING)].append(image)
    pairs, complaints = [], []
    for stem, files in groups.items():
        masks = [file for file in files if file.stem != stem] or files
        pictures = [file for file in files if file not in masks] or files
        try:
            if len(files) == 1:
                raise UserError(f"{files[0]}: has no mask; put {stem}{_ending(files[0])}.png beside it")
            if len(files) > 2:
                raise UserError(f"{files[0]}: {files[1].name} and {files[2].name} have its name too; rename one")
            mask, content = _choose(masks, kind)
            pairs.append(PairedImage(next(file for file in pictures if file != mask), mask, content))
        except UserError as error:
            complaints.append(str(error))
    return pairs, complaints


def _ending(image: Path) -> str:
    return MASK_ENDING if image.suffix.lower() == ".png" else ""


def _choose(files: Sequence[Path], kind: MaskKind | None) -> tuple[Path, InterpretedMask]:
    """The one of one or two files that looks like a mask; with `kind` given, else the PNG."""
    readable, problems = {}, {}
    for file in files:
        try:
            readable[file] = interpret_mask(file, kind)
        except UserError as error:
            problems[file] = error
    pngs = [file for file in files if file.suffix.lower() == ".png"]
    if len(readable) == 1:
        return next(iter(readable.items()))
    if readable and kind and len(pngs) == 1:
        return pngs[0], readable[pngs[0]]
    if not readable and (len(pngs) == 1 or len(files) == 1):
        raise problems[(pngs or files)[0]]
    both = "both look" if readable else "neither looks"
    name = f"{files[0].stem}{MASK_ENDING}.png"
    raise UserError(f"{files[0]}, {files[1].name}: {both} like a mask; call the one that is {name}")


def _check_looks(pairs: Sequence[PairedImage]) -> None:
    """Warn once of masks that were taken for something; UserError where those of one folder differ in kind."""
    notes = [f"{pair.mask}: {pair.content.note}" for pair in pairs if pair.content.note]
    if notes:
        more = f" (and {len(notes) - 1} masks more)" if len(notes) > 1 else ""
        warnings.warn(f"{notes[0]}{more}; if that is wrong, give --mask index, binary or alpha", stacklevel=2)
    index = [pair for pair in pairs if pair.content.look == "index"]
    numbered = [pair for pair in index if set(np.unique(pair.content.label)) - {0, 1, IGNORE}]
    objects = [pair for pair in pairs if pair.content.look != "index"]
    if numbered and objects:
        raise UserError(f"{objects[0].mask}: marks one object, {numbered[0].mask.name} classes by number; {SETTLE}")
    if colored := [pair for pair in objects if pair.content.color != objects[0].content.color]:
        other = objects[0].mask.name
        raise UserError(f"{colored[0].mask}: its object has another colour than that of {other}; {SETTLE}")


def _by_class(
    pictures: Sequence[AnnotatedImage], names: dict[int, str], complaints: Sequence[str] = ()
) -> list[SupportClass]:
    shown: dict[int, list[tuple[Path, Label]]] = {}
    complaints = list(complaints)
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
    raise_if_any(complaints, "support images")
    _check_looks([picture for picture in pictures if isinstance(picture, PairedImage)])
    names = names or {value: SINGLE if len(shown) == 1 else f"class_{value}" for value in shown}
    if nameless := sorted(shown.keys() - names.keys()):
        raise UserError(
            f"{pictures[0].image.parent / 'classes.txt'}: has no name for the value {nameless[0]} of the masks"
        )
    return [
        SupportClass(names[value], value, [image for image, _ in pairs], [mask for _, mask in pairs])
        for value, pairs in sorted(shown.items())
    ]


def read_boxes(path: Path, folder: Path) -> list[SupportClass]:
    """The classes of a CSV file of boxes in images below a folder; UserError names the line that is wrong."""
    wanted = ",".join(("file", *BOX_COLUMNS))
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
                continue
            record = dict(zip(columns, fields, strict=False))
            box = _box([record.get(side, "") for side in BOX_COLUMNS])
            file = record.get("file", "")
            if box is None or len(record) < len(fields) or not file or printable(file) != file:
                raise UserError(f"{path}:{start}: should be {wanted} and perhaps class, with that as the first line")
            image = find_image(file, [folder]) or folder / file
            name = _class_name(record.get("class") or SINGLE, f"{path}:{start}")
            boxes.setdefault(name, {}).setdefault(image, []).append(box)
    except csv.Error as error:
        raise UserError(f"{path}:{line}: cannot read the boxes: {error}; correct the line") from None
    if not boxes:
        raise UserError(f"{path}: no boxes; should be lines of {wanted} and perhaps class")
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

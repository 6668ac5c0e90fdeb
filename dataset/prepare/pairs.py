"""Images and their masks side by side: `name.jpg` with `name.png` or `name_mask.png`."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataset.lists import read_class_file
from dataset.prepare.annotations import class_name
from dataset.prepare.files import raise_if_any
from dataset.prepare.image import (
    AnnotatedImage,
    check_classes,
    check_hard,
    check_size,
    composed,
    files_below,
    mask_image,
    renumbered,
    values_of,
)
from util.errors import UserError
from util.image import is_image
from util.mask import SETTLE, InterpretedMask, MaskKind, interpret_mask

SINGLE = "object"  # the name of a class where none is given
MASK_ENDING = "_mask"  # name_mask.png is the mask of an image that is itself name.png
Pairs = tuple[list[AnnotatedImage], dict[int, str]]  # and the names of the classes by value


class _Pair(NamedTuple):
    """An image and the mask that belongs to it."""

    item: AnnotatedImage
    mask: Path
    found: InterpretedMask
    values: list[int]  # the classes in it


def files_of(folder: Path) -> list[Path]:
    """Images, masks and JSON files of a folder, without those that are hidden."""
    found = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if path.suffix.lower() == ".json" or is_image(path))


def folders_of(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and what a Mac's archive leaves."""
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))
    return sorted(found)


def read_pairs(folder: Path, kind: MaskKind | None = None, to_train: bool = False) -> Pairs:
    """The images of one folder with their masks, whose values are classes named by `classes.txt`.

    UserError names every image without a mask and every mask without an object, and with `to_train` one of soft edges.
    """
    pairs, complaints = _pair_masks([path for path in files_of(folder) if path.suffix.lower() != ".json"], kind)
    for pair in pairs:
        if not pair.values:
            complaints.append(f"{pair.item.image}: its annotation marks no object")
        try:
            check_size(pair.item)
        except UserError as error:
            complaints.append(str(error))
    raise_if_any(complaints, "images")
    _check_looks(pairs)
    for pair in pairs if to_train else ():
        check_hard(pair.mask, pair.found, kind)
    items, shown = [pair.item for pair in pairs], sorted({value for pair in pairs for value in pair.values})
    file = folder / "classes.txt"
    if not file.is_file():
        return items, {value: SINGLE if len(shown) == 1 else f"class_{value}" for value in shown}
    names = read_class_file(file)
    if nameless := [value for value in shown if value not in names]:
        raise UserError(f"{file}: has no name for the value {nameless[0]} of the masks")
    return items, {value: names[value] for value in shown}


def read_class_folders(
    folder: Path, subfolders: Sequence[Path], kind: MaskKind | None = None, to_train: bool = False
) -> Pairs:
    """The images of one class from each subfolder, which gives the class its name; UserError as in `read_pairs`.

    So it is for a subfolder without images, or with a deeper one that has some.
    """
    check_classes(len(subfolders), folder)
    items: list[AnnotatedImage] = []
    names: dict[int, str] = {}
    for number, subfolder in enumerate(subfolders, 1):
        if deeper := next((path.parent for path in files_below(subfolder) if path.parent != subfolder), None):
            raise UserError(f"{deeper}: a class is one folder; move these images into {subfolder}")
        if not files_of(subfolder):
            raise UserError(f"{subfolder}: a class without images; put some with masks in, or remove the folder")
        found, values = read_pairs(subfolder, kind, to_train)
        if len(values) > 1:
            shown = ", ".join(values.values())
            raise UserError(f"{subfolder}: marks {shown}, but a subfolder is one class; put the images into {folder}")
        name = name_of_class(subfolder.name, subfolder)
        if name in names.values():
            raise UserError(f"{folder}: two subfolders are called the same but for blanks; rename one")
        names[number] = name
        numbers = dict.fromkeys(values, number)
        items += [renumbered(item, numbers, f"{subfolder.name}/{item.name}") for item in found]
    return items, names


def name_of_class(text: str, where: Path | str) -> str:
    """The text if it can be the name of a class; UserError that says where it is from."""
    try:
        return class_name(text)
    except ValueError as error:
        raise UserError(f"{where}: {error}; rename it") from None


def _pair_masks(images: Sequence[Path], kind: MaskKind | None) -> tuple[list[_Pair], list[str]]:
    """Find the mask of every image of one folder; and a complaint for each image without one, and each bad mask.

    `name_mask.png` is a mask by its name; of two files that are both called `name` the one that looks like one is.
    Accents of either form, and upper and lower case, are the same where that leaves two files.
    """
    pairs, complaints = [], []
    for stem, files in _groups(images):
        masks = [file for file in files if composed(file.stem).casefold() != composed(stem).casefold()] or files
        photographs = [file for file in files if file not in masks] or files
        try:
            if len(files) == 1:
                ending = MASK_ENDING if files[0].suffix.lower() == ".png" else ""
                raise UserError(f"{files[0]}: has no mask; put {stem}{ending}.png beside it")
            if len(files) > 2:
                raise UserError(f"{files[0]}: {files[1].name} and {files[2].name} have its name too; rename one")
            mask, found = _choose(masks, kind)
            image = next(file for file in photographs if file != mask)
            height, width = found.label.shape
            item = mask_image(composed(image.stem), image, mask, (height, width), kind)
            pairs.append(_Pair(item, mask, found._replace(label=found.label[:0]), values_of(found.label)))
        except UserError as error:
            complaints.append(str(error))
    return pairs, complaints


def _groups(images: Sequence[Path]) -> list[tuple[str, list[Path]]]:
    """Files of one stem, those of another upper and lower case joined where each has lacked its partner."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        groups[composed(image.stem).removesuffix(MASK_ENDING)].append(image)
    single: dict[str, list[str]] = defaultdict(list)
    for stem, files in groups.items():
        if len(files) == 1:
            single[stem.casefold().removesuffix(MASK_ENDING)].append(stem)
    for first, second in (stems for stems in single.values() if len(stems) == 2):
        groups[first] += groups.pop(second)
    return list(groups.items())


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


def _check_looks(pairs: Sequence[_Pair]) -> None:
    """Warn once of masks that were taken for something; UserError where those of one folder differ in kind."""
    notes = [f"{pair.mask}: {pair.found.note}" for pair in pairs if pair.found.note]
    if notes:
        more = f" (and {len(notes) - 1} masks more)" if len(notes) > 1 else ""
        warnings.warn(f"{notes[0]}{more}; if that is wrong, give --mask index, binary or alpha", stacklevel=2)
    objects = [pair for pair in pairs if pair.found.look != "index"]
    numbered = [pair for pair in pairs if pair.found.look == "index" and set(pair.values) - {1}]
    if numbered and objects:
        raise UserError(f"{objects[0].mask}: marks one object, {numbered[0].mask.name} classes by number; {SETTLE}")
    if colored := [pair for pair in objects if pair.found.color != objects[0].found.color]:
        other = objects[0].mask.name
        raise UserError(f"{colored[0].mask}: its object has another colour than that of {other}; {SETTLE}")

"""Reading annotated images: a folder in the VOC layout, a COCO JSON file, a folder of LabelMe JSON files."""

import re
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from unicodedata import normalize

import numpy as np

from dataset.lists import read_class_file
from dataset.prepare.annotations import CocoFile, class_name, parse, read_annotation
from dataset.prepare.coco import coco_images
from dataset.prepare.files import in_parallel, raise_first
from dataset.prepare.image import Collection, MaskImage, by_stem, files_below, find_image, is_image
from dataset.prepare.labelme import read_labelme
from dataset.prepare.labels import read_label
from util.errors import UserError, printable
from util.files import numbered_lines
from util.mask import Colours, MaskKind
from util.pixels import IGNORE

LAYOUTS = (("JPEGImages", "SegmentationClassAug"), ("JPEGImages", "SegmentationClass"), ("images", "masks"))
COCO_KEYS = {"images", "annotations", "categories"}
PARTS = ("train", "val")


def read_source(source: Path, images: Path | None, workers: int, kind: MaskKind | None = None) -> Collection:
    """Read annotated images from a folder or file, whose format is found by looking.

    `images` is the folder of a COCO or LabelMe file's images where they are not beside it, `kind` what masks are.
    UserError when there is nothing that can be read, or what there is contradicts itself.
    """
    if not source.exists():
        raise UserError(f"{source} is missing")
    for image_folder, mask_folder in LAYOUTS:
        if (source / image_folder).is_dir() and (source / mask_folder).is_dir():
            return _read_voc(source, source / image_folder, source / mask_folder, workers, kind)
    files = [source] if source.is_file() else files_below(source, (".json",))
    contents = {file: read_annotation(file) for file in files}
    keys = {file: set(content) if isinstance(content, dict) else set() for file, content in contents.items()}
    coco_files = [file for file in files if len(keys[file] & COCO_KEYS) >= 2 and "annotations" in keys[file]]
    if len(coco_files) > 1:
        raise UserError(
            f"{coco_files[0]} and {coco_files[1]} are both COCO files; give one of them instead of {source}"
        )
    if coco_files:
        return _read_coco(coco_files[0], images)
    if any("shapes" in keys[file] for file in files):
        return read_labelme(source if source.is_dir() else source.parent, files, images, workers)
    layouts = " or ".join("/ with ".join(layout) + "/" for layout in LAYOUTS)
    raise UserError(f"{source} holds no annotations: neither {layouts}, nor a COCO or LabelMe JSON file")


def _read_coco(path: Path, images: Path | None) -> Collection:
    folders = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]

    def locate(name: str) -> Path:
        found = find_image(name, [images] if images else folders)
        if found is None:
            where = f"in {images}" if images else "beside it; give the folder with --images DIR"
            raise UserError(f"{path} names the image {name}, which is not {where}")
        return found

    content = parse(CocoFile, path, "COCO")
    if empty := content.empty():
        which = f"{path}: annotations[{empty[0]}] encloses nothing"
        if len(empty) == len(content.annotations):
            raise UserError(f"{which}, nor does any other; export polygons or run lengths")
        warnings.warn(f"{which}; {len(empty)} of {len(content.annotations)} annotations are like that", stacklevel=2)
    return Collection(*coco_images(content, locate))


def _read_voc(source: Path, image_folder: Path, mask_folder: Path, workers: int, kind: MaskKind | None) -> Collection:
    names, colours = _voc_names(source)
    masks = by_stem(files_below(mask_folder), mask_folder)
    images = by_stem(files_below(image_folder), image_folder)
    raise_first([f"{masks[name]} has no image in {image_folder}" for name in masks if name not in images])
    if left_out := sorted(images.keys() - masks.keys()):
        first = printable(str(images[left_out[0]]))
        print(f"{len(left_out)} images without a mask are left out; the first is {first}")
    tasks = [(mask, colours, kind) for mask in masks.values()]
    outcome = in_parallel(_values, tasks, "classes", workers)
    raise_first(outcome.complaints)
    found = sorted(set().union(*outcome.results) - {0, IGNORE})
    if not found:
        raise UserError(
            f"{mask_folder}: no mask holds a class, a value from 1 to 254 (0 is background, 255 is ignored); "
            "give --mask binary if 255 is the object"
        )
    for mask, values in zip(masks.values(), outcome.results, strict=True):
        if names and (unknown := sorted(values - {0, IGNORE} - set(names))):
            raise UserError(f"{mask} holds the value {unknown[0]}, for which {source / 'classes.txt'} has no name")
    numbers = {value: number for number, value in enumerate(found, start=1)}
    pictures = [MaskImage(name, images[name], mask, colours, numbers, kind) for name, mask in masks.items()]
    return Collection([names.get(value, f"class_{value}") for value in found], pictures, _voc_parts(source, masks))


def _values(task: tuple[Path, Colours | None, MaskKind | None]) -> set[int]:
    return set(np.unique(read_label(*task)).tolist())


def _voc_names(source: Path) -> tuple[dict[int, str], Colours | None]:
    """Names by mask value from classes.txt, or names and colours from labelmap.txt, which CVAT writes; or neither."""
    if (source / "classes.txt").is_file():
        return read_class_file(source / "classes.txt"), None
    path = source / "labelmap.txt"
    return read_label_map(path) if path.is_file() else ({}, None)


def read_label_map(path: Path) -> tuple[dict[int, str], Colours]:
    """Names and colours of the classes 1, 2, ... in lines `name:red,green,blue:...`; UserError names a wrong line."""
    names: dict[int, str] = {}
    colours: dict[tuple[int, int, int], int] = {}
    for number, line in numbered_lines(path, "label map"):
        if line.startswith("#"):
            continue
        try:
            stated, colour = line.split(":")[:2]
            name = class_name(stated)
            red, green, blue = (int(channel) for channel in colour.split(","))
            if not all(0 <= channel <= 255 for channel in (red, green, blue)):
                raise ValueError
        except ValueError:
            raise UserError(f"{path}:{number}: {line!r} is not `name:red,green,blue:...`") from None
        if (red, green, blue) in colours or name in names.values():
            raise UserError(f"{path}:{number}: the label {name} or its colour is there twice; change one of the two")
        is_class = name.strip("_").lower() != "background"
        if is_class:
            names[len(names) + 1] = name
        colours[(red, green, blue)] = len(names) if is_class else 0
    return names, {(0, 0, 0): 0, **colours}


def _voc_parts(source: Path, masks: Mapping[str, Path]) -> dict[str, set[str]]:
    """The names in the source's own training and validation lists, lines of `name` or `image mask`; empty if none."""
    for folder in (source / "ImageSets/Segmentation", source / "ImageSets"):
        files = [folder / f"{part}.txt" for part in PARTS]
        if all(file.is_file() for file in files):
            parts = {part: read_part(file, source, masks) for part, file in zip(PARTS, files, strict=True)}
            if both := sorted(parts["train"] & parts["val"]):
                warnings.warn(f"{folder}: {both[0]} is in both lists, {len(both)} images are", stacklevel=2)
            return parts
        for file, other in (files, files[::-1]):
            if file.is_file():
                warnings.warn(f"{file}: not used, as there is no {other.name}; both lists are made anew", stacklevel=2)
    return {}


def read_part(path: Path, source: Path, known: Container[str]) -> set[str]:
    """The names in a list of images, as any system writes them; UserError for one that is not known, and if none is.

    A line is `name`, with or without folder and suffix, or `name` and something else, such as its mask.
    """
    found = set()
    for number, line in numbered_lines(path, "list file"):
        words = re.split(r"(\s+)", line)
        starts = ("".join(words[:end]) for end in range(len(words), 0, -2))  # names may have blanks in them
        name = next((name for start in starts for name in _names(start, source) if name in known), None)
        if name is None:
            raise UserError(f"{path}:{number}: there is no image with a mask for {line!r}; correct or remove the line")
        found.add(name)
    if not found:
        raise UserError(f"{path}: the list is empty; fill it, or remove both lists to have them made")
    return found


def _names(stated: str, source: Path) -> list[str]:
    """What a line may mean, below the folder of images and without suffix."""
    path = Path(re.sub("^file://", "", stated.strip("\"'")).replace("\\", "/"))
    if path.is_absolute():
        path = path.relative_to(source.resolve()) if path.is_relative_to(source.resolve()) else path.relative_to("/")
    parts = [part for part in path.parts if part != "."]
    layouts = {layout[0] for layout in LAYOUTS}
    start = max((number + 1 for number, part in enumerate(parts[:-1]) if part in layouts), default=0)
    inside = Path(*parts[start:])
    inside = Path(normalize("NFC", str(inside)))
    return [str(inside), *([str(inside.with_suffix(""))] if is_image(inside) else [])]

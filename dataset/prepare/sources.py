"""Reading annotated images: a folder in the VOC layout, a COCO JSON file, a folder of LabelMe JSON files."""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dataset.lists import read_class_file
from dataset.prepare.annotations import (
    CocoFile,
    Segmentation,
    class_name,
    decode_segmentation,
    paint,
    parse,
    read_annotation,
)
from dataset.prepare.files import raise_if_any, run_all
from dataset.prepare.image import (
    SUFFIX,
    AnnotatedImage,
    Collection,
    Size,
    by_stem,
    check_classes,
    composed,
    files_below,
    find_image,
    mask_image,
    read_label,
    renumbered,
    spellings,
    tell_left_out,
)
from dataset.prepare.labelme import read_labelme
from dataset.prepare.pairs import SINGLE, files_of, folders_of, read_class_folders, read_pairs
from util.errors import UserError
from util.files import numbered_lines
from util.mask import Colours, Label, MaskKind
from util.pixels import IGNORE

LAYOUTS = (("JPEGImages", "SegmentationClassAug"), ("JPEGImages", "SegmentationClass"), ("images", "masks"))
COCO_KEYS = {"images", "annotations", "categories"}
PARTS = ("train", "val")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_source(source: Path, images: Path | None, workers: int, kind: MaskKind | None = None) -> Collection:
    """Read annotated images from a folder or file, whose format is found by looking.

    `images` is the folder of the images where they are not beside their annotations, `kind` what masks are.
    UserError when there is nothing that can be read, or what there is contradicts itself.
    """
    if not source.exists():
        raise UserError(f"{source} is missing")
    if images and not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    if layout := layout_of(source, images):
        return _read_voc(source, *layout, workers, kind)
    files = [source] if source.is_file() else files_below(source, ".json")
    contents = {file: read_annotation(file) for file in files}
    keys = {file: set(content) if isinstance(content, dict) else set() for file, content in contents.items()}
    coco_files = [file for file in files if len(keys[file] & COCO_KEYS) >= 2 and "annotations" in keys[file]]
    if coco_files:
        return _read_splits(coco_files, images) if len(coco_files) > 1 else _read_coco(coco_files[0], images)
    if any("shapes" in keys[file] for file in files):
        return read_labelme(source if source.is_dir() else source.parent, files, images, workers)
    lacking = next((mask for _, mask in LAYOUTS if (source / mask).is_dir()), None)
    if lacking and not files_of(source):
        raise UserError(f"{source} has {lacking}/, but no folder of images; give the folder with --images DIR")
    if source.is_dir() and (found := _read_pairs(source, kind)):
        return found
    layouts = " or ".join("/ with ".join(layout) + "/" for layout in LAYOUTS)
    raise UserError(
        f"{source} holds no annotations: neither {layouts}, nor a COCO or LabelMe JSON file, "
        "nor images with masks beside them"
    )


def layout_of(source: Path, images: Path | None = None) -> tuple[Path, Path] | None:
    """The folders of images, or `images` where that is given, and of masks; None where there are none."""
    for image_folder, mask_folder in LAYOUTS:
        folders = images or source / image_folder, source / mask_folder
        if all(folder.is_dir() for folder in folders):
            return folders
    return None


def _read_pairs(source: Path, kind: MaskKind | None) -> Collection | None:
    """What predict.py takes: images with masks beside them, in one folder or in a subfolder for each class."""
    subfolders = folders_of(source)
    if files_of(source):
        items, names = read_pairs(source, kind, to_train=True)
    elif any(files_of(folder) for folder in subfolders):
        items, names = read_class_folders(source, subfolders, kind, to_train=True)
    else:
        return None
    numbers = {value: number for number, value in enumerate(names, start=1)}
    return Collection(list(names.values()), [renumbered(item, numbers) for item in items])


def _read_splits(files: Sequence[Path], images: Path | None) -> Collection:
    """COCO files of one data set, each called by its part or in a folder that is, as Roboflow exports them."""
    parts: dict[str, Path] = {}
    for file in files:
        words = re.findall("[a-z]+", f"{file.parent.name} {file.stem}".lower())
        part = next((SPLITS[word] for word in words if word in SPLITS), str(file))
        if part not in ("train", "val", "test") or part in parts:
            other = next(path for path in files if path != file)
            raise UserError(f"{other} and {file} are both COCO files, and not one for train and one for val; give one")
        parts[part] = file
    if "val" not in parts and "test" in parts:
        parts["val"] = parts.pop("test")
    if "test" in parts:
        warnings.warn(f"{parts.pop('test')}: left out, as there is a part for validation", stacklevel=2)
    if missing := [part for part in PARTS if part not in parts]:
        raise UserError(
            f"{files[0]} and {len(files) - 1} more COCO files have no part for {missing[0]}; give one of them"
        )
    collections = {part: _read_coco(file, images, file.parent.name) for part, file in parts.items()}
    classes = list(dict.fromkeys(name for found in collections.values() for name in found.classes))
    merged = []
    for part, found in collections.items():
        numbers = {number: classes.index(name) + 1 for number, name in enumerate(found.classes, 1)}
        merged += [renumbered(item, numbers, f"{part}/{item.name}") for item in found.images]
    members = {part: {f"{part}/{item.name}" for item in collections[part].images} for part in PARTS}
    return Collection(classes, merged, members)


def _read_coco(path: Path, images: Path | None, part: str = "") -> Collection:
    folders = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
    if images:
        folders = [images / part, images]

    def locate(name: str) -> Path:
        found = find_image(name, folders)
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
    classes, items = coco_images(content, locate)
    check_classes(len(classes), path)
    return Collection(classes, items)


def coco_images(
    content: CocoFile, locate: Callable[[str], Path], all_classes: bool = False
) -> tuple[list[str], list[AnnotatedImage]]:
    """Names of the classes, in the order of the categories' ids, and the annotated images, sorted by file name.

    `locate` finds an image by its file name; categories that nobody uses are classes only with `all_classes`; crowds
    count as objects.
    """
    used = {item.category_id for item in content.annotations}
    categories = sorted(content.categories, key=lambda category: (isinstance(category.id, str), category.id))
    classes = [category for category in categories if all_classes or category.id in used]
    numbers = {category.id: number for number, category in enumerate(classes, start=1)}
    shapes = defaultdict(list)
    for annotation in content.annotations:
        shapes[annotation.image_id].append((numbers[annotation.category_id], annotation.segmentation))
    items = []
    for image in sorted(content.images, key=lambda image: image.file_name):
        if image.id in shapes:
            path, name = locate(image.file_name), str(Path(image.file_name).with_suffix(""))
            draw = partial(_draw_segmentations, path, shapes[image.id])
            items.append(AnnotatedImage(name, path, (image.height, image.width), draw))
    return [category.name for category in classes], items


def _draw_segmentations(image: Path, segmentations: list[tuple[int, Segmentation]], size: Size) -> Label:
    try:
        shapes = [(value, decode_segmentation(item, *size)) for value, item in segmentations]
    except Exception as error:  # whatever pycocotools makes of malformed polygons
        raise UserError(f"{image} has a segmentation that cannot be decoded: {error}") from None
    return paint(*size, shapes)


def _read_voc(source: Path, image_folder: Path, mask_folder: Path, workers: int, kind: MaskKind | None) -> Collection:
    names, colours = _voc_names(source)
    masks, images = by_stem(mask_folder), by_stem(image_folder)
    known = spellings(images)
    image_of = {name: known.get(name, known.get(name.casefold(), "")) for name in masks}
    raise_if_any([f"{masks[name]} has no image in {image_folder}" for name in masks if not image_of[name]], "masks")
    tell_left_out([images[name] for name in sorted(images.keys() - set(image_of.values()))], "a mask")
    contents = run_all(_content, [(mask, colours, kind) for mask in masks.values()], "classes", workers, "masks")
    present = set().union(*(values for values, _ in contents))
    if one_object := present == {0, IGNORE} and kind is None and not colours:
        folders = sorted({name.split("/")[0] for name in masks}) if all("/" in name for name in masks) else []
        classes = folders or [next(iter(names.values())) if len(names) == 1 else SINGLE]
    else:
        found = sorted(present - {0, IGNORE})
        classes = [names.get(value, f"class_{value}") for value in found]
    if not classes:
        raise UserError(
            f"{mask_folder}: no mask holds a class, a value from 1 to 254 (0 is background, 255 is ignored)"
        )
    check_classes(len(classes), mask_folder)
    items = []
    for (name, mask), (values, size) in zip(masks.items(), contents, strict=True):
        if one_object:
            numbers = {1: folders.index(name.split("/")[0]) + 1 if folders else 1}
        elif names and (unknown := sorted(values - {0, IGNORE} - set(names))):
            raise UserError(f"{mask} holds the value {unknown[0]}, for which {source / 'classes.txt'} has no name")
        elif values <= {0, IGNORE}:  # a mask that holds nothing but 255 says what is to be ignored
            numbers = {1: IGNORE}
        else:
            numbers = {value: number for number, value in enumerate(found, start=1)}
        item = mask_image(name, images[image_of[name]], mask, size, "binary" if one_object else kind, colours)
        items.append(renumbered(item, numbers))
    return Collection(classes, items, _voc_parts(source, masks))


def _content(task: tuple[Path, Colours | None, MaskKind | None]) -> tuple[set[int], Size]:
    """The values in a mask, and its size."""
    label = read_label(*task)
    height, width = label.shape
    return set(np.unique(label).tolist()), (height, width)


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
        if name.strip("_").lower() == "background":
            colours[(red, green, blue)] = 0
        else:
            names[len(names) + 1] = name
            colours[(red, green, blue)] = len(names)
    if 0 not in colours.values() and (black := colours.get((0, 0, 0))):
        raise UserError(
            f"{path}: the label {names[black]} is black, as the background is; give it another colour and export "
            "again, or add the background with its colour, such as background:255,255,255::"
        )
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


def read_part(path: Path, source: Path, known: Iterable[str]) -> set[str]:
    """The names in a list of images, as any system writes them; UserError for one that is not known, and if none is.

    A line is `name`, with or without folder and suffix, or `name` and something else, such as its mask.
    """
    found = set()
    known_as = spellings(known)
    for number, line in numbered_lines(path, "list file"):
        words = re.split(r"(\s+)", line)
        starts = ("".join(words[:end]) for end in range(len(words), 0, -2))  # names may have blanks in them
        stated = [name for start in starts for name in _names(start, source)]
        name = next((known_as[name] for name in [*stated, *map(str.casefold, stated)] if name in known_as), None)
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
    inside = Path(composed(Path(*parts[start:])))
    return [str(inside), *([str(inside.with_suffix(""))] if SUFFIX.search(inside.name) else [])]

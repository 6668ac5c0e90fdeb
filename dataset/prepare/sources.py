"""Reading annotated pictures: a folder in the VOC layout, a COCO JSON file, a folder of LabelMe JSON files."""

import json
from pathlib import Path

import numpy as np

from dataset.prepare.coco import group_instances, read_coco
from dataset.prepare.files import in_parallel, raise_if_any, read_lines
from dataset.prepare.labelme import read_labelme
from dataset.prepare.labels import Colours, read_label
from dataset.prepare.picture import CocoPicture, Collection, MaskPicture, is_image
from util.errors import UserError
from util.pixels import IGNORE

LAYOUTS = (("JPEGImages", "SegmentationClassAug"), ("JPEGImages", "SegmentationClass"), ("images", "masks"))
COCO_KEYS = {"images", "annotations", "categories"}


def read_source(source: Path, images: Path | None, workers: int) -> Collection:
    """Read annotated pictures from a folder or file, whose format is found by looking.

    `images` is the folder of a COCO or LabelMe file's images where they are not beside it. UserError when there is
    nothing that can be read, or what there is contradicts itself.
    """
    if not source.exists():
        raise UserError(f"{source} is missing")
    for image_folder, mask_folder in LAYOUTS:
        if (source / image_folder).is_dir() and (source / mask_folder).is_dir():
            return _read_voc(source, source / image_folder, source / mask_folder, workers)
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    coco_files = [file for file in files if _keys(file) >= COCO_KEYS]
    if len(coco_files) > 1:
        raise UserError(
            f"{coco_files[0]} and {coco_files[1]} are both COCO files; give one of them instead of {source}"
        )
    if coco_files:
        return _read_coco(coco_files[0], images)
    labelme_files = [file for file in files if "shapes" in _keys(file)]
    if labelme_files:
        return read_labelme(source if source.is_dir() else source.parent, labelme_files, images)
    layouts = " or ".join("/ with ".join(layout) + "/" for layout in LAYOUTS)
    raise UserError(f"{source} holds no annotations: neither {layouts}, nor a COCO or LabelMe JSON file")


def _keys(path: Path) -> set[str]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} is no JSON file; correct it or remove it") from None
    return set(content) if isinstance(content, dict) else set()


def _read_coco(path: Path, images: Path | None) -> Collection:
    content = read_coco(path)
    used = {item["category_id"] for items in content["annotations"].values() for item in items}
    categories = [category for category in sorted(content["categories"]) if category in used]
    numbers = {category: number for number, category in enumerate(categories, start=1)}
    instances = group_instances(path, content, numbers, Path(), Path())
    folder = images or _coco_images(path, instances[0].image if instances else Path())
    pictures = [
        CocoPicture(str(item.image.with_suffix("")), folder / item.image, item.width, item.height, item.segmentations)
        for item in instances
    ]
    return Collection([str(content["categories"][category]) for category in categories], list(pictures))


def _coco_images(path: Path, name: Path) -> Path:
    folders = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    raise UserError(f"{path} names the image {name}, which is not beside it; give the folder with --images DIR")


def _read_voc(source: Path, image_folder: Path, mask_folder: Path, workers: int) -> Collection:
    names, colours = _voc_names(source)
    masks = sorted(path for path in mask_folder.rglob("*") if is_image(path))
    images = {_name(path, image_folder): path for path in sorted(image_folder.rglob("*")) if is_image(path)}
    raise_if_any(
        [f"{mask} has no image in {image_folder}" for mask in masks if _name(mask, mask_folder) not in images], "masks"
    )
    tasks = [(mask, colours) for mask in masks]
    outcome = in_parallel(_values, tasks, "classes", workers)
    raise_if_any(outcome.complaints, "masks")
    found = sorted(set().union(*outcome.results) - {0, IGNORE})
    if not found:
        raise UserError(
            f"{mask_folder}: no mask holds a class, a value from 1 to 254 (0 is background, 255 is ignored)"
        )
    for mask, values in zip(masks, outcome.results, strict=True):
        if names and (unknown := sorted(values - {0, IGNORE} - set(names))):
            raise UserError(f"{mask} holds the value {unknown[0]}, for which {source / 'classes.txt'} has no name")
    numbers = {value: number for number, value in enumerate(found, start=1)}
    pictures = [
        MaskPicture(_name(mask, mask_folder), images[_name(mask, mask_folder)], mask, colours, numbers)
        for mask in masks
    ]
    return Collection([names.get(value, f"class_{value}") for value in found], list(pictures), _voc_parts(source))


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _values(task: tuple[Path, Colours | None]) -> set[int]:
    return set(np.unique(read_label(*task)).tolist())


def _voc_names(source: Path) -> tuple[dict[int, str], Colours | None]:
    """Names by mask value from classes.txt, or names and colours from labelmap.txt, which CVAT writes; or neither."""
    if (source / "classes.txt").is_file():
        return read_classes(source / "classes.txt"), None
    if not (source / "labelmap.txt").is_file():
        return {}, None
    names: dict[int, str] = {}
    colours: dict[tuple[int, int, int], int] = {(0, 0, 0): 0}
    for line in read_lines(source / "labelmap.txt"):
        if line.startswith("#"):
            continue
        try:
            name, colour = line.split(":")[:2]
            red, green, blue = (int(channel) for channel in colour.split(","))
        except ValueError:
            raise UserError(f"{source / 'labelmap.txt'}: {line!r} is not `name:red,green,blue:...`") from None
        if name == "background":
            colours[(red, green, blue)] = 0
        else:
            names[len(names) + 1] = name
            colours[(red, green, blue)] = len(names)
    return names, colours


def read_classes(path: Path) -> dict[int, str]:
    """Read lines of `index name`, whatever the indices; UserError for others."""
    names: dict[int, str] = {}
    for line in read_lines(path):
        value, _, name = line.partition(" ")
        if not value.isdecimal() or not name.strip():
            raise UserError(f"{path}: {line!r} is not `index name`, such as `1 bird`")
        names[int(value)] = name.strip()
    return names


def _voc_parts(source: Path) -> dict[str, set[str]]:
    """The names in the source's own training and validation lists, lines of `name` or `image mask`; empty if none."""
    for folder in (source / "ImageSets/Segmentation", source / "ImageSets"):
        if all((folder / f"{part}.txt").is_file() for part in ("train", "val")):
            return {part: {_stem(line) for line in read_lines(folder / f"{part}.txt")} for part in ("train", "val")}
    return {}


def _stem(line: str) -> str:
    name = Path(line.split()[0])
    if not is_image(name):
        return str(name)
    inside = name.parts[1:] if name.parts[0] in {layout[0] for layout in LAYOUTS} else name.parts
    return str(Path(*inside).with_suffix(""))

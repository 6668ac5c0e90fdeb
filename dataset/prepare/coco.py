"""COCO-20i from MS COCO 2014."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.index import COCO_CLASSES, read_list
from dataset.prepare.archive import Source, unpack
from dataset.prepare.files import Pair, check_image, in_parallel, is_intact_png, raise_if_any, write_label, write_pairs
from dataset.prepare.known import coco_archives
from dataset.prepare.labels import decode_segmentation, paint
from util.errors import UserError

PARTS = {"train": "train2014", "val": "val2014"}
RECORDS = ".prepared"


@dataclass(frozen=True)
class Instances:
    """The annotated instances of one image: (class, COCO segmentation), and where their class map goes."""

    image: Path
    mask: Path
    width: int
    height: int
    segmentations: list[tuple[int, Any]]


def prepare_coco(root: Path, source: Source, workers: int) -> dict[str, list[Pair]]:
    """Build COCO-20i in `root` (train2014/, val2014/, annotations/{train,val}2014/, ImageSets/); return the two lists.

    The lists hold every image that has an annotation, sorted. Whatever is done already is left alone. UserError names
    what is missing or damaged.
    """
    for archive in coco_archives():
        unpack(archive, source, root, root / RECORDS)
    return {part: _prepare_part(root, part, folder, workers) for part, folder in PARTS.items()}


def _prepare_part(root: Path, part: str, folder: str, workers: int) -> list[Pair]:
    list_file = root / "ImageSets" / f"{part}.txt"
    source = root / "annotations" / f"instances_{folder}.json"
    if _is_done(root, list_file, source, workers):
        print(f"{folder}: all masks were there")
        return read_list(list_file)
    content = read_coco(source)
    classes = {category: number for number, category in enumerate(sorted(content["categories"]), start=1)}
    if len(classes) != len(COCO_CLASSES):
        raise UserError(f"{source} has {len(classes)} categories instead of {len(COCO_CLASSES)}: not the official file")
    instances = group_instances(source, content, classes, root / folder, root / "annotations" / folder)
    outcome = in_parallel(make_mask, instances, f"masks {folder}", workers)
    raise_if_any(outcome.complaints, "annotations")
    print(f"{folder}: {sum(outcome.results)} of {len(instances)} masks written, the others were there")
    pairs = [(str(item.image.relative_to(root)), str(item.mask.relative_to(root))) for item in instances]
    write_pairs(list_file, pairs)
    return pairs


def _is_done(root: Path, list_file: Path, source: Path, workers: int) -> bool:
    """Whether the list, which is written last, is no older than the annotations, and all its masks are intact."""
    if not list_file.is_file() or not source.is_file() or list_file.stat().st_mtime < source.stat().st_mtime:
        return False
    masks = [root / mask for _, mask in read_list(list_file)]
    return all(in_parallel(is_intact_png, masks, f"look at masks of {list_file.name}", workers).results)


def read_coco(path: Path) -> dict[str, dict[int, Any]]:
    """Read COCO's annotations: `categories` and `images` by id, and `annotations`, a list of them by image id.

    UserError when the file is missing or damaged or is no COCO file.
    """
    try:
        content = json.loads(path.read_bytes())
        annotations: dict[int, list[Any]] = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        categories = {category["id"]: category["name"] for category in content["categories"]}
        return {"categories": categories, "images": {i["id"]: i for i in content["images"]}, "annotations": annotations}
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or no COCO file: {type(error).__name__}: {error}") from None


def group_instances(
    source: Path, content: dict[str, dict[int, Any]], classes: dict[int, int], images: Path, masks: Path
) -> list[Instances]:
    """The annotated instances of every image that has some, sorted by file name; crowds count as instances.

    `classes` gives the class of a category id; `images` and `masks` are the folders. UserError when a field is missing.
    """
    try:
        instances = []
        for image_id, annotations in content["annotations"].items():
            image = content["images"][image_id]
            name = Path(image["file_name"])
            segmentations = [(classes[item["category_id"]], item["segmentation"]) for item in annotations]
            mask = masks / name.with_suffix(".png")
            instances.append(Instances(images / name, mask, image["width"], image["height"], segmentations))
        return sorted(instances, key=lambda item: item.image)
    except (KeyError, TypeError) as error:
        raise UserError(f"{source} is damaged: {error} is missing in an annotation or image") from None


def make_mask(instances: Instances) -> bool:
    """Write the class map of an image's instances unless it is there and intact; return whether it was written.

    UserError when the image is missing, damaged or not of the annotated size, or a segmentation cannot be decoded.
    """
    height, width = instances.height, instances.width
    if is_intact_png(instances.mask) and instances.image.is_file():
        return False
    if (size := check_image(instances.image)) != (width, height):
        raise UserError(f"{instances.image} is {size[0]}x{size[1]}, annotated as {width}x{height}")
    try:
        shapes = [(value, decode_segmentation(shape, height, width)) for value, shape in instances.segmentations]
    except Exception as error:  # whatever pycocotools makes of malformed run lengths or polygons
        raise UserError(f"{instances.image} has a segmentation that cannot be decoded: {error}") from None
    write_label(instances.mask, paint(height, width, shapes))
    return True

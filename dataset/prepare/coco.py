"""COCO-20i from MS COCO 2014."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from dataset.benchmarks.coco import COCO_CLASSES
from dataset.lists import read_list
from dataset.prepare.annotations import CocoFile, parse
from dataset.prepare.archive import Source, unpack
from dataset.prepare.files import (
    RECORDS,
    Pair,
    in_parallel,
    is_intact_png,
    official_name,
    raise_if_any,
    write_label,
    write_pairs,
)
from dataset.prepare.image import CocoImage, upright_label
from dataset.prepare.known import coco_archives
from dataset.prepare.prepared import unpack_prepared, write_prepared
from util.errors import UserError

PARTS = {"train": "train2014", "val": "val2014"}
PREPARED = r"(?:train|val)2014/[^/]+\.jpg|annotations/(?:train|val)2014/[^/]+\.png"


def prepare_coco(root: Path, source: Source, workers: int) -> dict[str, list[Pair]]:
    """Build COCO-20i in `root` (train2014/, val2014/, annotations/{train,val}2014/, ImageSets/); return the two lists.

    The lists hold every image that has an annotation, sorted. Whatever is done already is left alone. Masks that others
    have prepared are taken where there is nothing to make them of. UserError names what is missing or damaged.
    """
    raw = [f"annotations/instances_{folder}.json" for folder in PARTS.values()]
    if unpack_prepared(source, coco_archives(), root, PREPARED, "annotations/val2014/*.png", (*raw, RECORDS)):
        return write_prepared(root, {part: _prepared_pairs(root, folder) for part, folder in PARTS.items()})
    for archive in coco_archives():
        unpack(archive, source, root, root / RECORDS)
    return {part: _prepare_part(root, part, folder, workers) for part, folder in PARTS.items()}


def _prepared_pairs(root: Path, folder: str) -> list[Pair]:
    masks = sorted((root / "annotations" / folder).glob("*.png"))
    return [(f"{folder}/{mask.stem}.jpg", f"annotations/{folder}/{mask.name}") for mask in masks]


def _prepare_part(root: Path, part: str, folder: str, workers: int) -> list[Pair]:
    list_file = root / "ImageSets" / f"{part}.txt"
    source = root / "annotations" / f"instances_{folder}.json"
    if _is_done(root, list_file, source, workers):
        print(f"{folder}: all masks were there")
        return read_list(list_file)
    content = parse(CocoFile, source, "COCO")
    if len(content.categories) != len(COCO_CLASSES):
        many = len(content.categories)
        raise UserError(f"{source} has {many} categories instead of {len(COCO_CLASSES)}: not the official file")
    for image in content.images:
        official_name(source, image.file_name)
    _, pictures = coco_images(content, lambda name: root / folder / name, all_classes=True)
    tasks = [(picture, root / "annotations" / folder / f"{picture.name}.png") for picture in pictures]
    outcome = in_parallel(make_mask, tasks, f"masks {folder}", workers)
    raise_if_any(outcome.complaints, "annotations")
    print(f"{folder}: {sum(outcome.results)} of {len(tasks)} masks written, the others were there")
    pairs = [(str(picture.image.relative_to(root)), str(mask.relative_to(root))) for picture, mask in tasks]
    write_pairs(list_file, pairs)
    return pairs


def _is_done(root: Path, list_file: Path, source: Path, workers: int) -> bool:
    """Whether the list, which is written last, is no older than the annotations, and all its masks are intact."""
    if not list_file.is_file() or not source.is_file() or list_file.stat().st_mtime < source.stat().st_mtime:
        return False
    masks = [root / mask for _, mask in read_list(list_file)]
    return all(in_parallel(is_intact_png, masks, f"look at masks of {list_file.name}", workers).results)


def coco_images(
    content: CocoFile, locate: Callable[[str], Path], all_classes: bool = False
) -> tuple[list[str], list[CocoImage]]:
    """Names of the classes, in the order of the categories' ids, and the annotated images, sorted by file name.

    `locate` finds an image by its file name; categories that nobody uses are classes only with `all_classes`; crowds
    count as objects.
    """
    used = {item.category_id for item in content.annotations}
    categories = sorted(content.categories, key=lambda category: (isinstance(category.id, str), category.id))
    classes = [category for category in categories if all_classes or category.id in used]
    numbers = {category.id: number for number, category in enumerate(classes, start=1)}
    shapes = defaultdict(list)
    for item in content.annotations:
        shapes[item.image_id].append((numbers[item.category_id], item.segmentation))
    pictures = [
        CocoImage(
            str(Path(image.file_name).with_suffix("")),
            locate(image.file_name),
            image.height,
            image.width,
            shapes[image.id],
        )
        for image in sorted(content.images, key=lambda image: image.file_name)
        if image.id in shapes
    ]
    return [category.name for category in classes], pictures


def make_mask(task: tuple[CocoImage, Path]) -> bool:
    """Write the class map of an image's objects unless it is there and intact; return whether it was written.

    UserError when the image is missing, damaged or not of the annotated size, or a segmentation cannot be decoded.
    """
    picture, mask = task
    if is_intact_png(mask) and picture.image.is_file():
        return False
    write_label(mask, upright_label(picture))
    return True

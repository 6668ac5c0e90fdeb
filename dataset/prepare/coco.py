"""COCO-20i from MS COCO 2014."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dataset.benchmarks.coco import COCO_CLASSES
from dataset.lists import Pair, read_list
from dataset.prepare.annotations import CocoFile, Segmentation, decode_segmentation, paint, parse
from dataset.prepare.archive import Source, unpack, unpack_prepared, write_prepared
from dataset.prepare.files import RECORDS, in_parallel, is_intact_png, official_name, write_lists
from dataset.prepare.image import AnnotatedImage, Size, make_masks
from dataset.prepare.known import coco_archives
from util.errors import UserError
from util.mask import Label

PARTS = {"train": "train2014", "val": "val2014"}
PREPARED = r"(?:train|val)2014/[^/]+\.jpg|annotations/(?:train|val)2014/[^/]+\.png"


def prepare_coco(root: Path, source: Source, workers: int) -> dict[str, list[Pair]]:
    """Build COCO-20i in `root` (train2014/, val2014/, annotations/{train,val}2014/, ImageSets/); return the two lists.

    The lists hold every image that has an annotation, sorted. Whatever is done already is left alone. Masks that others
    have prepared are taken where there is nothing to make them of. UserError names what is missing or damaged.
    """
    raw = [f"annotations/instances_{folder}.json" for folder in PARTS.values()]
    if unpack_prepared(source, coco_archives(), root, PREPARED, "annotations/val2014/*.png", (*raw, RECORDS)):
        masks = {part: sorted((root / "annotations" / folder).glob("*.png")) for part, folder in PARTS.items()}
        pairs = {part: [_pair(PARTS[part], mask.stem) for mask in found] for part, found in masks.items()}
        return write_prepared(root, pairs)
    for archive in coco_archives():
        unpack(archive, source, root, root / RECORDS)
    return {part: _prepare_part(root, part, folder, workers) for part, folder in PARTS.items()}


def _pair(folder: str, name: str) -> Pair:
    return f"{folder}/{name}.jpg", f"annotations/{folder}/{name}.png"


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
    _, items = coco_images(content, lambda name: root / folder / name, all_classes=True)
    pairs = [_pair(folder, item.name) for item in items]
    make_masks([(item, root / mask) for item, (_, mask) in zip(items, pairs, strict=True)], f"{folder}: ", workers)
    write_lists(root, {part: pairs})
    return pairs


def _is_done(root: Path, list_file: Path, source: Path, workers: int) -> bool:
    """Whether the list, which is written last, is no older than the annotations, and all its masks are intact."""
    if not list_file.is_file() or not source.is_file() or list_file.stat().st_mtime < source.stat().st_mtime:
        return False
    masks = [root / mask for _, mask in read_list(list_file)]
    return all(in_parallel(is_intact_png, masks, f"look at masks of {list_file.name}", workers)[0])


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
            draw = partial(_draw, path, shapes[image.id])
            items.append(AnnotatedImage(name, path, (image.height, image.width), draw))
    return [category.name for category in classes], items


def _draw(image: Path, segmentations: list[tuple[int, Segmentation]], size: Size) -> Label:
    try:
        shapes = [(value, decode_segmentation(item, *size)) for value, item in segmentations]
    except Exception as error:  # whatever pycocotools makes of malformed polygons
        raise UserError(f"{image} has a segmentation that cannot be decoded: {error}") from None
    return paint(*size, shapes)

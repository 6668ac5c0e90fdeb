"""PASCAL-5i from PASCAL VOC 2012 and the Semantic Boundaries Dataset, COCO-20i from MS COCO 2014."""

from functools import partial
from pathlib import Path

import numpy as np

from dataset.benchmarks.coco import COCO_CLASSES
from dataset.lists import Pair, read_list
from dataset.prepare.annotations import CocoFile, parse
from dataset.prepare.archive import Source, unpack, unpack_prepared, write_prepared
from dataset.prepare.files import RECORDS, in_parallel, is_intact_png, official_name, write_lists
from dataset.prepare.image import AnnotatedImage, Size, make_masks, read_label
from dataset.prepare.known import coco_archives, sbd_archive, voc_archive
from dataset.prepare.sources import coco_images
from dataset.reading import check_sizes
from util.errors import UserError
from util.files import numbered_lines
from util.mask import Label

PASCAL_MASKS = "SegmentationClassAug"
PASCAL_FILES = rf"JPEGImages/[^/]+\.jpg|{PASCAL_MASKS}/[^/]+\.png|ImageSets/(?:Main|Segmentation)/(?:train|val)\.txt"
COCO_PARTS = {"train": "train2014", "val": "val2014"}
COCO_FILES = r"(?:train|val)2014/[^/]+\.jpg|annotations/(?:train|val)2014/[^/]+\.png"


def prepare_pascal(root: Path, source: Source, workers: int) -> dict[str, list[Pair]]:
    """Build PASCAL-5i in `root` (JPEGImages/, SegmentationClassAug/, ImageSets/{train,val}.txt); return the two lists.

    Training images are SBD's (train and val) without VOC 2012's validation images, sorted, and then the images of VOC's
    segmentation training set that SBD lacks; validation images are VOC's segmentation validation set. Training images
    from SBD have SBD's masks, all others VOC's. Whatever is done already is left alone. Masks that others have prepared
    are taken where there is nothing to make them of. UserError names what is missing or damaged.
    """
    archives = voc_archive(), sbd_archive()
    if unpack_prepared(source, archives, root, PASCAL_FILES, f"{PASCAL_MASKS}/*.png", ("SBD", RECORDS)):
        val, held_out = _validation_names(root)
        train = sorted({path.stem for path in (root / PASCAL_MASKS).glob("*.png")} - held_out)
        return write_prepared(root, {"train": list(map(_pascal_pair, train)), "val": list(map(_pascal_pair, val))})
    unpack(voc_archive(), source, root, root / RECORDS)
    unpack(sbd_archive(), source, root / "SBD", root / RECORDS)
    val, held_out = _validation_names(root)
    sbd = set(_names(root / "SBD/train.txt")) | set(_names(root / "SBD/val.txt"))
    voc = sorted(set(_names(root / "ImageSets/Segmentation/train.txt")) - sbd - held_out)
    sbd_train = sorted(sbd - held_out)
    annotations = [(name, root / f"SBD/cls/{name}.mat") for name in sbd_train]
    annotations += [(name, root / f"SegmentationClass/{name}.png") for name in voc + val]
    make_masks([_task(root, name, annotation) for name, annotation in annotations], "", workers)
    lists = {"train": list(map(_pascal_pair, sbd_train + voc)), "val": list(map(_pascal_pair, val))}
    write_lists(root, lists)
    return lists


def _validation_names(root: Path) -> tuple[list[str], set[str]]:
    """The names of the validation images, and of all that are kept out of training."""
    sets = root / "ImageSets"
    val = _names(sets / "Segmentation/val.txt")
    # The validation images of all of VOC's tasks stay out of training, not only those with a segmentation.
    if (sets / "Main/val.txt").is_file():
        return val, set(val) | set(_names(sets / "Main/val.txt"))
    print(f"{sets / 'Main/val.txt'} is missing: only the segmentation validation images are kept out of training")
    return val, set(val)


def _task(root: Path, name: str, annotation: Path) -> tuple[AnnotatedImage, Path]:
    image, mask = (root / path for path in _pascal_pair(name))
    return AnnotatedImage(name, image, None, partial(_read_annotation, annotation, image)), mask


def _read_annotation(path: Path, image: Path, size: Size) -> Label:
    label = read_sbd(path) if path.suffix == ".mat" else read_label(path)
    check_sizes(size, label, image, path)
    return label


def read_sbd(path: Path) -> Label:
    """Read the class map (H, W) of an SBD annotation, `GTcls.Segmentation`; UserError when missing or damaged."""
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        segmentation = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # a damaged file makes SciPy's reader fail in any way there is
        raise UserError(f"{path} is damaged: {type(error).__name__} while reading GTcls.Segmentation") from None
    if segmentation.ndim != 2 or segmentation.dtype != np.uint8:
        raise UserError(f"{path} is damaged: GTcls.Segmentation is {segmentation.dtype}{list(segmentation.shape)}")
    return np.ascontiguousarray(segmentation)


def _names(path: Path) -> list[str]:
    return [official_name(path, line.split()[0]) for _, line in numbered_lines(path, "list of names")]


def _pascal_pair(name: str) -> Pair:
    return f"JPEGImages/{name}.jpg", f"{PASCAL_MASKS}/{name}.png"


def prepare_coco(root: Path, source: Source, workers: int) -> dict[str, list[Pair]]:
    """Build COCO-20i in `root` (train2014/, val2014/, annotations/{train,val}2014/, ImageSets/); return the two lists.

    The lists hold every image that has an annotation, sorted. Whatever is done already is left alone. Masks that others
    have prepared are taken where there is nothing to make them of. UserError names what is missing or damaged.
    """
    raw = [f"annotations/instances_{folder}.json" for folder in COCO_PARTS.values()]
    if unpack_prepared(source, coco_archives(), root, COCO_FILES, "annotations/val2014/*.png", (*raw, RECORDS)):
        masks = {part: sorted((root / "annotations" / folder).glob("*.png")) for part, folder in COCO_PARTS.items()}
        pairs = {part: [_coco_pair(COCO_PARTS[part], mask.stem) for mask in found] for part, found in masks.items()}
        return write_prepared(root, pairs)
    for archive in coco_archives():
        unpack(archive, source, root, root / RECORDS)
    return {part: _coco_part(root, part, folder, workers) for part, folder in COCO_PARTS.items()}


def _coco_pair(folder: str, name: str) -> Pair:
    return f"{folder}/{name}.jpg", f"annotations/{folder}/{name}.png"


def _coco_part(root: Path, part: str, folder: str, workers: int) -> list[Pair]:
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
    pairs = [_coco_pair(folder, item.name) for item in items]
    make_masks([(item, root / mask) for item, (_, mask) in zip(items, pairs, strict=True)], f"{folder}: ", workers)
    write_lists(root, {part: pairs})
    return pairs


def _is_done(root: Path, list_file: Path, source: Path, workers: int) -> bool:
    """Whether the list, which is written last, is no older than the annotations, and all its masks are intact."""
    if not list_file.is_file() or not source.is_file() or list_file.stat().st_mtime < source.stat().st_mtime:
        return False
    masks = [root / mask for _, mask in read_list(list_file)]
    return all(in_parallel(is_intact_png, masks, f"look at masks of {list_file.name}", workers)[0])

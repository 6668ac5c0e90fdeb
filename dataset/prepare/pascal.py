"""PASCAL-5i from PASCAL VOC 2012 and the Semantic Boundaries Dataset."""

from dataclasses import dataclass
from pathlib import Path

from dataset.prepare.archive import Source, unpack
from dataset.prepare.files import (
    RECORDS,
    Pair,
    check_image,
    in_parallel,
    is_intact_png,
    official_name,
    raise_if_any,
    write_label,
    write_pairs,
)
from dataset.prepare.known import sbd_archive, voc_archive
from dataset.prepare.labels import read_label, read_sbd
from dataset.prepare.prepared import unpack_prepared, write_prepared
from util.errors import UserError
from util.files import numbered_lines
from util.mask import Label

MASKS = "SegmentationClassAug"
PREPARED = rf"JPEGImages/[^/]+\.jpg|{MASKS}/[^/]+\.png|ImageSets/(?:Main|Segmentation)/(?:train|val)\.txt"


@dataclass(frozen=True)
class Annotation:
    """One mask to make: where the raw annotation lies, the image it belongs to, and where the class map goes."""

    source: Path
    image: Path
    mask: Path


def prepare_pascal(root: Path, source: Source, workers: int) -> dict[str, list[Pair]]:
    """Build PASCAL-5i in `root` (JPEGImages/, SegmentationClassAug/, ImageSets/{train,val}.txt); return the two lists.

    Training images are SBD's (train and val) without VOC 2012's validation images, sorted, and then the images of VOC's
    segmentation training set that SBD lacks; validation images are VOC's segmentation validation set. Training images
    from SBD have SBD's masks, all others VOC's. Whatever is done already is left alone. Masks that others have prepared
    are taken where there is nothing to make them of. UserError names what is missing or damaged.
    """
    archives = voc_archive(), sbd_archive()
    if unpack_prepared(source, archives, root, PREPARED, f"{MASKS}/*.png", ("SBD", RECORDS)):
        val, held_out = validation_names(root)
        train = sorted({path.stem for path in (root / MASKS).glob("*.png")} - held_out)
        return write_prepared(root, {"train": [_pair(name) for name in train], "val": [_pair(name) for name in val]})
    unpack(voc_archive(), source, root, root / RECORDS)
    unpack(sbd_archive(), source, root / "SBD", root / RECORDS)
    sbd_names, voc_names, val_names = image_names(root)
    annotations = [_annotation(root, root / "SBD/cls", ".mat", name) for name in sbd_names]
    annotations += [_annotation(root, root / "SegmentationClass", ".png", name) for name in voc_names + val_names]
    outcome = in_parallel(make_mask, annotations, "masks", workers)
    raise_if_any(outcome.complaints, "annotations")
    print(f"{sum(outcome.results)} of {len(annotations)} masks written, the others were there")
    lists = {"train": [_pair(name) for name in sbd_names + voc_names], "val": [_pair(name) for name in val_names]}
    for part, pairs in lists.items():
        write_pairs(root / "ImageSets" / f"{part}.txt", pairs)
    return lists


def image_names(root: Path) -> tuple[list[str], list[str], list[str]]:
    """The names of the training images from SBD, of those from VOC that SBD lacks, and of the validation images."""
    val, held_out = validation_names(root)
    sbd = set(_names(root / "SBD/train.txt")) | set(_names(root / "SBD/val.txt"))
    lacking = set(_names(root / "ImageSets/Segmentation/train.txt")) - sbd - held_out
    return sorted(sbd - held_out), sorted(lacking), val


def validation_names(root: Path) -> tuple[list[str], set[str]]:
    """The names of the validation images, and of all that are kept out of training."""
    sets = root / "ImageSets"
    val = _names(sets / "Segmentation/val.txt")
    # The validation images of all of VOC's tasks stay out of training, not only those with a segmentation.
    if (sets / "Main/val.txt").is_file():
        held_out = set(val) | set(_names(sets / "Main/val.txt"))
    else:
        held_out = set(val)
        print(f"{sets / 'Main/val.txt'} is missing: only the segmentation validation images are kept out of training")
    return val, held_out


def make_mask(annotation: Annotation) -> bool:
    """Write the class map of an annotation unless it is there and intact; return whether it was written.

    UserError when the annotation or its image is missing or damaged, or they differ in size.
    """
    if is_intact_png(annotation.mask) and annotation.image.is_file():
        return False
    size = check_image(annotation.image)
    label: Label = read_sbd(annotation.source) if annotation.source.suffix == ".mat" else read_label(annotation.source)
    if label.shape != size:
        mask_size = f"{label.shape[1]}x{label.shape[0]}"
        raise UserError(f"{annotation.source} is {mask_size}, its image {annotation.image} {size[1]}x{size[0]}")
    write_label(annotation.mask, label)
    return True


def _annotation(root: Path, folder: Path, suffix: str, name: str) -> Annotation:
    image, mask = _pair(name)
    return Annotation(folder / f"{name}{suffix}", root / image, root / mask)


def _names(path: Path) -> list[str]:
    return [official_name(path, line.split()[0]) for _, line in numbered_lines(path, "list of names")]


def _pair(name: str) -> Pair:
    return f"JPEGImages/{name}.jpg", f"{MASKS}/{name}.png"

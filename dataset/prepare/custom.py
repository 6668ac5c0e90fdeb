"""A data set of one's own from annotated images: classes, masks, lists, folds and the config that uses it."""

import filecmp
import hashlib
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from dataset.lists import Pair, class_lines
from dataset.prepare.files import LEAST, is_intact_png, run_all, write_label, write_lists, write_text
from dataset.prepare.image import AnnotatedImage, Collection, check_size, upright_label
from dataset.prepare.known import AREA_THRESHOLD, FOLD_SIZES, LIST_SIZES
from dataset.prepare.sources import read_source
from dataset.reading import CROP_RATIO, read_mask
from util.config import BASE_DIR, load_config
from util.errors import UserError
from util.files import atomic_open, claimed, own_name
from util.folds import fold_classes
from util.mask import MaskKind
from util.pixels import IGNORE

VOC_AREA = 500 * 375  # pixels of the images for which the area threshold was chosen
KEPT = 0.75  # of the images of a class, and twice LEAST of them, in which it is to count
FOLDS = 4
FOLDERS = "JPEGImages", "SegmentationClassAug"
MARKER = ".prepared_custom"  # says that a folder is ours to write to
NOT_DIVIDED = (
    "too few images to divide them: each is in both lists; no class is trained on and tested in the same fold, "
    f"but an image may be; add images, {2 * LEAST} of a class at least"
)
HEAD = "# split: the fold whose classes are novel, 0 to"  # of the config in such a folder


class Conversion(NamedTuple):
    """An annotated image, and where its image and its class map go."""

    source: AnnotatedImage
    image: Path
    mask: Path

    def listed(self, root: Path) -> Pair:
        """Image and mask as a list names them."""
        return str(self.image.relative_to(root)), str(self.mask.relative_to(root))


class Converted(NamedTuple):
    """What a converted image holds: pixels in all, and pixels of each class."""

    area: int
    classes: dict[int, int]


def prepare_custom(
    source: Path,
    out: Path,
    *,
    name: str,
    folds: int | None,
    val_share: float,
    images: Path | None,
    workers: int,
    kind: MaskKind | None = None,
    area_threshold: int | None = None,
) -> Path:
    """Make a data set in `out` from annotated images and return the config file that uses it.

    `folds`: the largest up to 4 that the classes allow if None. `val_share`: part of the images that becomes the
    validation list where the source has no lists of its own. `kind`: what masks are, where that cannot be seen.
    `area_threshold`: pixels from which on a class counts in an image, chosen from the objects if None.
    UserError names what is missing, damaged or too little, and an `out` with files that are not ours.
    """
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out} is the source itself; give another folder")
    if name in LIST_SIZES.keys() | FOLD_SIZES.keys():
        raise UserError(f"--name {name} is that of an official data set; give another name")
    collection = read_source(source, images, workers, kind)
    classes = collection.classes
    folds = _fold_count(source, len(classes), folds)
    conversions = plan(collection, out)
    run_all(check_size, collection.images, "sizes", workers, "images")
    with claimed(out, lambda path: path.name == MARKER):
        is_new = write_text(out / MARKER, "made by tools.prepare custom, which may write into this folder\n")
        converted = run_all(convert, conversions, "images", workers, "images")
        threshold = area_threshold or _area_threshold(converted)
        made = {item.source.name: content.classes for item, content in zip(conversions, converted, strict=True)}
        counting = {key: {c for c, area in areas.items() if area >= threshold} for key, areas in made.items()}
        parts = _divide(collection, counting, val_share)
        if lacking := [part for part, names in parts.items() if not any(counting[key] for key in names)]:
            for written in (*FOLDERS, MARKER) if is_new else ():
                shutil.rmtree(out / written) if written in FOLDERS else (out / written).unlink()
            raise UserError(
                f"no image of the {lacking[0]} list has a class of {threshold} pixels; give a lower --area-threshold"
            )
        pairs = {item.source.name: item.listed(out) for item in conversions}
        write_lists(out, {part: [pairs[key] for key in pairs if key in names] for part, names in parts.items()})
        write_text(out / "classes.txt", class_lines(dict(enumerate(classes, start=1))))
        config = out / "config.yaml"
        write_text(config, _config_text(name, out, len(classes), folds, threshold))
    load_config(config)
    print(_summary(classes, folds, parts, counting))
    return config


def _divide(collection: Collection, counting: Mapping[str, AbstractSet[int]], val_share: float) -> dict[str, set[str]]:
    """The training and validation images: the source's own lists, or else a choice; all in both where they are few."""
    if collection.parts:
        return {part: collection.parts[part] for part in ("train", "val")}
    val = choose_val(counting, val_share)
    if not val:
        warnings.warn(NOT_DIVIDED, stacklevel=2)
    return {"train": counting.keys() - val, "val": val or set(counting)}


def _fold_count(source: Path, classes: int, folds: int | None) -> int:
    if classes >= IGNORE:
        raise UserError(f"{source} has {classes} classes; an 8-bit mask holds {IGNORE - 1} at most")
    if classes < 2:
        raise UserError(
            f"{source} has {classes} class; training needs two at least, one to learn on and one to test. A trained "
            f"network finds it in other images as it is: predict.py --support {source} ..., or Predictor.set_support"
        )
    if folds is not None and not 2 <= folds <= classes:
        raise UserError(f"--folds {folds}: from 2 to {classes}, the number of classes")
    return folds or min(FOLDS, classes)


def plan(collection: Collection, out: Path) -> list[Conversion]:
    """Where each image goes, below `out` whatever it is called: spaces become underscores, as lists separate by them.

    UserError when two meet, and for an image that lies in `out` itself.
    """
    conversions: dict[str, Conversion] = {}
    sources: dict[Path, str] = {}
    for item in sorted(collection.images, key=lambda item: item.name):
        name, file = own_name("_".join(item.name.split())), item.image.resolve()
        if name in conversions:
            raise UserError(f"{item.image} and {conversions[name].source.image} would both become {name}; rename one")
        if out.resolve() in file.parents:
            raise UserError(f"{item.image}: lies in the --out folder; move or rename it")
        if sources.setdefault(file, item.name) != item.name:
            raise UserError(f"{file}: is annotated twice, as {sources[file]} and {item.name}; remove one")
        image, mask = (out / folder for folder in FOLDERS)
        conversions[name] = Conversion(item, image / f"{name}{file.suffix}", mask / f"{name}.png")
    return list(conversions.values())


def convert(conversion: Conversion) -> Converted:
    """Write an image's image and class map unless they are there already; UserError when it cannot be read."""
    label = upright_label(conversion.source)
    if not is_intact_png(conversion.mask) or not np.array_equal(read_mask(conversion.mask), label):
        write_label(conversion.mask, label)
    _copy(conversion.source.image, conversion.image)
    pixels = np.bincount(label.ravel(), minlength=IGNORE + 1)
    return Converted(label.size, {value: int(pixels[value]) for value in range(1, IGNORE) if pixels[value]})


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with atomic_open(target) as file, source.open("rb") as data:
        shutil.copyfileobj(data, file)
    shutil.copystat(source, target)


def choose_val(counting: Mapping[str, AbstractSet[int]], share: float) -> set[str]:
    """Choose the validation images: about `share` of the images of every class, two at least where it has four or more.

    `counting` gives the classes that count in each image. Training keeps two images of every class that has as many.
    The choice depends on names and classes alone: images go by the hash of their names, rare classes choose first.
    """
    order = sorted(counting, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    images = {value: [name for name in order if value in counting[name]] for value in set().union(*counting.values())}
    left = {value: len(members) for value, members in images.items()}
    val: set[str] = set()
    for value, members in sorted(images.items(), key=lambda item: (len(item[1]), item[0])):
        wanted = max(round(share * len(members)), LEAST if len(members) >= 2 * LEAST else 0)
        for name in members:
            if len(members) - left[value] >= wanted:
                break
            if name not in val and all(left[other] > LEAST for other in counting[name]):
                val.add(name)
                for other in counting[name]:
                    left[other] -= 1
    return val


def _area_threshold(converted: Sequence[Converted]) -> int:
    """PASCAL's threshold in proportion to the images' median area, where they are smaller than PASCAL's.

    Less where the objects are so small that a class would count in too few of its images.
    """
    median = float(np.median([made.area for made in converted]))
    proportional = round(AREA_THRESHOLD * min(1.0, median / VOC_AREA))
    threshold = proportional
    for value in set().union(*(made.classes for made in converted)):
        areas = sorted((made.classes[value] for made in converted if value in made.classes), reverse=True)
        threshold = min(threshold, areas[min(len(areas), max(ceil(KEPT * len(areas)), 2 * LEAST)) - 1])
    if threshold < proportional:
        print(f"area_threshold {threshold} instead of {proportional}, below which most objects of some class are")
    return max(1, threshold)


def _config_text(name: str, out: Path, classes: int, folds: int, threshold: int) -> str:
    keys = {
        "data_set": name,
        "data_root": str(out.resolve()),
        "num_classes": classes,
        "folds": folds,
        "split": 0,
        "area_threshold": threshold,
        "max_side": round(CROP_RATIO * load_config(BASE_DIR / "pascal.yaml").train_h),
    }
    return (
        f"{HEAD} {folds - 1}.\n"
        "# area_threshold: pixels below which a class does not count in an image.\n"
        f"# max_side: larger images are reduced to it first; {CROP_RATIO} times train_h suits.\n"
        "# Every other key has the default of config/base/pascal.yaml.\n"
        f"{yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=1000)}"
    )


def _summary(
    classes: Sequence[str], folds: int, parts: Mapping[str, AbstractSet[str]], counting: Mapping[str, AbstractSet[int]]
) -> str:
    """A table of folds, classes and the images that count for each; classes with too few for an episode are marked."""
    images: Counter[tuple[str, int]] = Counter()
    for part, names in parts.items():
        images.update((part, value) for name in names for value in counting[name])
    lines = [f"{len(parts['train'])} training and {len(parts['val'])} validation images", "fold class train val"]
    for split in range(folds):
        for value in fold_classes("", split, len(classes), folds, use_split_coco=False)[1]:
            train, val = images["train", value], images["val", value]
            lack = [part for part, count in (("training", train), ("validation", val)) if count < LEAST]
            note = f"   too few {' and '.join(lack)} images for an episode" if lack else ""
            lines.append(f"{split:4} {value:>3} {classes[value - 1]:24} {train:5} {val:5}{note}")
    return "\n".join(lines)

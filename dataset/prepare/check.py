"""Verification of a data set on disk: its lists, every file in them, and the known sizes of the official ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataset.benchmarks.table import open_benchmark
from dataset.index import ImageMaskStore, Mode, load_index
from dataset.lists import locate, read_list
from dataset.prepare.files import LEAST, check_image, in_parallel, is_intact_png
from dataset.prepare.known import AREA_THRESHOLD, CLASS_SIZES, FOLD_SIZES, LIST_SIZES
from dataset.reading import check_sizes, oversize_note, read_mask
from util.config import Config
from util.errors import UserError
from util.pixels import IGNORE

MODES: tuple[Mode, ...] = ("train", "val")
MODE_NAMES = {"train": "training", "val": "validation"}
SHOWN = 20  # complaints of one list that are printed


class Finding(NamedTuple):
    """One line of the report, and whether what it describes is in order; None: no fault, but worth a look."""

    good: bool | None
    text: str


def compare(title: str, found: int, known: int | None) -> Finding:
    """A count against what is known; None where nobody knows for certain."""
    if known is None or found == known:
        return Finding(True, f"{title}: {found}")
    return Finding(False, f"{title}: {found}, should be {known}")


def check(cfg: Config, workers: int) -> list[Finding]:
    """Verify the data set of a config and return what was found, for every fold.

    Lists must exist and name images and masks that are whole, equal in size and of known classes; an official data set
    must have the known sizes; every class must have images enough for an episode.
    """
    findings = [finding for mode in MODES for finding in _check_files(cfg, mode, workers)]
    if all(finding.good is not False for finding in findings):
        splits = [cfg.model_copy(update={"split": split}) for split in range(cfg.folds)]
        findings += [finding for mode in MODES for fold in splits for finding in _check_fold(fold, mode)]
    else:
        findings.append(Finding(False, "classes and folds: not looked at, correct the above first"))
    return findings


def _check_files(cfg: Config, mode: Mode, workers: int) -> Iterator[Finding]:
    name = MODE_NAMES[mode]
    try:
        files = _files(cfg, mode)
    except UserError as error:
        yield Finding(False, f"{name} list: {error}")
        return
    if cfg.released_lists is None:
        yield compare(f"{name} list, images", len(files), LIST_SIZES.get(cfg.data_set, {}).get(mode))
    tasks = [(image, mask, cfg.num_classes) for image, mask in files.values()]
    _, complaints = in_parallel(_check_pair, tasks, f"check {name} files", workers)
    yield Finding(not complaints, f"{name} files: {len(tasks) - len(complaints)} of {len(tasks)} pairs are whole")
    yield from (Finding(False, complaint) for complaint in complaints[:SHOWN])
    if len(complaints) > SHOWN:
        yield Finding(False, f"... and {len(complaints) - SHOWN} more")
    images = [image for image, _ in files.values()]
    if not complaints and mode == "train" and (note := oversize_note(images, cfg.train_h, cfg.max_side)):
        yield Finding(None, note)


def _files(cfg: Config, mode: Mode) -> ImageMaskStore:
    """The files of a mode's list, or of all folds of the released lists."""
    if cfg.released_lists is None:
        root = Path(cfg.data_root)
        pairs = read_list(locate(root, cfg.train_list_file if mode == "train" else cfg.val_list))
        return ImageMaskStore({image: (root / image, root / mask) for image, mask in pairs})
    folds = (cfg.model_copy(update={"split": split}) for split in range(cfg.folds))
    return ImageMaskStore({name: pair for fold in folds for name, pair in load_index(fold, mode)[1].items()})


def _check_pair(task: tuple[Path, Path, int]) -> None:
    image, mask, num_classes = task
    size, label = check_image(image), read_mask(mask)
    if mask.suffix.lower() == ".png" and not is_intact_png(mask):
        raise UserError(f"{mask} is damaged: a checksum in it is wrong")
    check_sizes(size, label, image, mask)
    if (highest := label[label != IGNORE].max(initial=0)) > num_classes:
        raise UserError(f"{mask} holds class {highest}, of {num_classes}")


def _check_fold(cfg: Config, mode: Mode) -> Iterator[Finding]:
    fold = f"fold {cfg.split}, {MODE_NAMES[mode]} images"
    try:
        index, _ = load_index(cfg, mode)
        names = open_benchmark(cfg).names()
    except UserError as error:
        yield Finding(False, f"{fold}: {error}")
        return
    official = cfg.area_threshold == AREA_THRESHOLD and cfg.use_split_coco | (cfg.data_set != "coco")
    sizes = FOLD_SIZES.get(cfg.data_set, {}).get(mode) if official else None
    yield compare(fold, len(index.images), sizes[cfg.split] if sizes else None)
    class_sizes = CLASS_SIZES.get(cfg.data_set) if official and mode == "val" else None
    for position, (value, images) in enumerate(index.by_class.items()):
        count = len(images)
        title = f"{fold} of class {value} {names[value]}"
        if class_sizes:
            yield compare(title, count, class_sizes[cfg.split][position])
        if not count:
            yield Finding(None, f"{title}: 0, it is {'left out of the draw' if mode == 'train' else 'not tested'}")
        elif count < LEAST:
            yield Finding(False, f"{title}: {count}, an episode needs {LEAST} at least")

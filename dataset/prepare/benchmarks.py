"""Benchmarks from archives on the disk: where each file belongs, what is made of them, and the known counts."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset.benchmarks.deepglobe import DeepGlobe
from dataset.benchmarks.isaid5i import Isaid, mask_path
from dataset.benchmarks.isic2018 import IMAGES, MASKS
from dataset.benchmarks.msrc import MSRC_CLASSES
from dataset.benchmarks.pascal_part import KINDS, LIST, part_names, read_parts
from dataset.benchmarks.suim import Suim
from dataset.lists import class_lines, read_pickle
from dataset.prepare.archive import SUFFIXES, extract
from dataset.prepare.files import run_all, write_label, write_lists, write_text
from dataset.reading import read_grey_mask
from util.errors import UserError
from util.files import atomic_write
from util.image import read_image
from util.mask import voc_colours
from util.pixels import IGNORE

GRID, LEAST = 6, 0.048  # DeepGlobe's patches a side; the share of a patch that every colour in it has
# The colour of each class's folder, of channels that are none or full.
DEEPGLOBE_COLOURS = {"1": "110", "2": "011", "3": "101", "4": "010", "5": "001", "6": "111"}
SUIM_COLOURS = {"HD": "001", "PF": "010", "WR": "011", "RO": "100", "RI": "101", "FV": "110", "SR": "111"}
VOC_COLOURS = list(voc_colours())  # in the order of the palette


class Count(NamedTuple):
    """How many files or entries there are, and should be; None where nobody knows for certain."""

    what: str
    found: int
    known: int | None


class Recipe(NamedTuple):
    """How a benchmark is made.

    `places`: pattern of a path in an archive -> path below the root; the first that fits counts. `finish` makes what
    is left to make, with so many processes; `counts` says what is there.
    """

    places: tuple[tuple[str, str], ...]
    counts: Callable[[Path], Iterator[Count]]
    finish: Callable[[Path, int], None] = lambda root, workers: None


def prepare_benchmark(name: str, root: Path, archives: Path | None, workers: int) -> list[Count]:
    """Unpack into `root` what is there of a benchmark, make what is left to make, and count it.

    `archives` is an archive or a folder of them; None takes the files in `root` as they are. What is there already is
    left alone. UserError when an archive is missing or damaged, or nothing of it belongs to the benchmark.
    """
    recipe = RECIPES[name]
    for path in _archive_files(archives) if archives else ():
        record = root / ".prepared" / f"{path.name}.{path.stat().st_size}"
        if not record.is_file():
            sizes = extract(path, partial(_place, recipe, root))
            if not sizes and archives == path:
                raise UserError(f"{path}: holds no file of {name}; give the archive named in docs/benchmarks.md")
            atomic_write(record, f"{len(sizes)} files\n")
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give --archives, or --root with what is unpacked already")
    recipe.finish(root, workers)
    return list(recipe.counts(root))


def _archive_files(source: Path) -> list[Path]:
    files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"{source}: no archive there ({', '.join(SUFFIXES)}); give the file or its folder")
    return files


def _place(recipe: Recipe, root: Path, member: str) -> Path | None:
    for pattern, place in recipe.places:
        if found := re.search(rf"(?:^|/){pattern}$", member):
            return root / found.expand(place)
    return None


def _files(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def _finish_isaid(root: Path, workers: int) -> None:
    for part in ("train", "val"):
        images = [f"{part}/images/{path.name}" for path in _files(root, f"{part}/images/*.png")]
        masks = [mask_path(image) for image in images]
        if lacking := [mask for mask in masks if not (root / mask).is_file()]:
            raise UserError(
                f"{root / lacking[0]} and {len(lacking) - 1} more masks are missing; unpack the archive again"
            )
        write_lists(root, {part: list(zip(images, masks, strict=True))})
    write_text(root / "classes.txt", class_lines(dict(enumerate(Isaid.CLASSES, 1))))


def _finish_deepglobe(root: Path, workers: int) -> None:
    run_all(partial(_cut, root), _unmarked(root, "raw/*_sat.jpg"), "cut", workers, "images")
    _write_lists(root, "deepglobe", DeepGlobe.FOLDERS, "filter_mask", workers)


def _cut(root: Path, path: Path) -> None:
    """The patches of one satellite image whose every colour is more than 4.8 %, if there are two or more."""
    mask_path = path.with_name(path.name.replace("_sat.jpg", "_mask.png"))
    pixels, colours = read_image(path), _colours(mask_path)
    height, width = (side // GRID for side in pixels.shape[:2])
    for row in range(GRID):
        for column in range(GRID):
            window = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
            values, counts = np.unique(colours[window], return_counts=True)
            if len(values) > 1 and counts.min() > LEAST * colours[window].size:
                name = f"{path.stem}_{row}{column}"
                (root / "image").mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[window]).save(root / f"image/{name}.jpg", quality=95)
                _write_masks(root / "filter_mask", name, colours[window], DEEPGLOBE_COLOURS)
    _mark(root, path)


def _colours(path: Path) -> NDArray[np.int64]:
    """The colour of every pixel (h, w) in bits, red first; colours are not pure, so each channel is cut at 128."""
    return (read_image(path) >= 128) @ np.array([4, 2, 1])


def _write_masks(folder: Path, name: str, colours: NDArray[np.int64], classes: Mapping[str, str]) -> None:
    for class_folder, bits in classes.items():
        if (of_class := colours == int(bits, 2)).any():
            write_label(folder / class_folder / f"{name}.png", of_class.astype(np.uint8) * 255)


def _write_lists(root: Path, name: str, folders: Sequence[str], masks: str, workers: int) -> None:
    """The list `class name name ...` of the masks that are not empty."""
    lines = []
    for number, folder in enumerate(folders, 1):
        found = _files(root, f"{masks}/{folder}/*.png")
        listed = run_all(_unless_empty, found, f"{name} {folder}", workers, "masks")
        lines.append(" ".join([str(number), *filter(None, listed)]))
    write_text(root / f"lists/{name}.txt", "".join(f"{line}\n" for line in lines))


def _unless_empty(path: Path) -> str | None:
    return path.stem if read_grey_mask(path).any() else None


def _finish_chest(root: Path, workers: int) -> None:
    names = [path.stem.removesuffix("_mask") for path in _files(root, "masks/*.png")]
    write_text(root / "lists/chest_xray.txt", " ".join(["1", *names]) + "\n")


def _finish_suim(root: Path, workers: int) -> None:
    run_all(partial(_split, root), _unmarked(root, "raw/*.bmp"), "masks", workers, "masks")
    _write_lists(root, "suim", Suim.FOLDERS, "masks", workers)


def _split(root: Path, path: Path) -> None:
    """A mask per class from the original's colours."""
    _write_masks(root / "masks", path.stem, _colours(path), SUIM_COLOURS)
    _mark(root, path)


def _unmarked(root: Path, pattern: str) -> list[Path]:
    """The raw files of which not all has been made."""
    return [path for path in _files(root, pattern) if not (root / ".prepared" / path.name).exists()]


def _mark(root: Path, path: Path) -> None:
    atomic_write(root / ".prepared" / path.name, "")


def counted(*rows: tuple[str, str, int | None]) -> Callable[[Path], Iterator[Count]]:
    """Counts of the files of a pattern, in rows (what, pattern, known)."""
    return lambda root: (Count(what, len(_files(root, pattern)), known) for what, pattern, known in rows)


VAL_2017 = "images of val2017", "coco/val2017/*.jpg", 5000


def _count_fss(root: Path) -> Iterator[Count]:
    folder = root / "data" if (root / "data").is_dir() else root
    images = _files(folder, "*/*.jpg")
    yield Count("classes", len({path.parent for path in images}), 1000)
    yield Count("images", len(images), 10000)
    yield Count("masks", len(_files(folder, "*/*.png")), 10000)


def _count_suim(root: Path) -> Iterator[Count]:
    yield from counted(("images", "images/*.jpg", 1635))(root)
    listed = (root / "lists/suim.txt").read_text().split("\n")
    yield Count("masks that are not empty", sum(len(line.split()[1:]) for line in listed), 3859)


def _count_lvis(root: Path) -> Iterator[Count]:
    usable = sum(len(images) > 1 for images in read_pickle(root / "lvis_val.pkl").values())
    yield Count("classes of a fold at 1 shot (92 by the paper: unverified)", usable // 10, None)
    yield from counted(VAL_2017, ("images of train2017", "coco/train2017/*.jpg", 118287))(root)


def _count_paco(root: Path) -> Iterator[Count]:
    yield Count("training classes", len(read_pickle(root / "paco_part_train.pkl")["cid2img"]), 448)
    yield from counted(VAL_2017)(root)


def _count_parts(root: Path) -> Iterator[Count]:
    for fold, known in enumerate((31, 4, 5, 16)):
        yield Count(f"parts of {KINDS[fold]}", len(part_names(read_parts(root / LIST, fold))), known)
    yield from counted(("images", "JPEGImages/*.jpg", 11321))(root)


def _finish_msrc(root: Path, workers: int) -> None:
    run_all(partial(_recode, root), _unmarked(root, "raw/*_GT.bmp"), "masks", workers, "masks")
    labels = _files(root, "SegmentationClass/*.png")
    images = {path.stem: path.name for path in _files(root, "JPEGImages/*.*")}
    if lacking := [path for path in labels if path.stem not in images]:
        raise UserError(f"{lacking[0]}: its image is not in {root / 'JPEGImages'}; unpack the archive again")
    pairs = [(f"JPEGImages/{images[path.stem]}", f"SegmentationClass/{path.name}") for path in labels]
    write_lists(root, {"train": pairs[::2], "val": pairs[1::2], "trainval": pairs})


def _recode(root: Path, path: Path) -> None:
    """The classes of a mask by its colours: those of VOC's palette without its 19th and 20th; others are unlabelled."""
    colours = read_image(path)
    label = np.full(colours.shape[:2], IGNORE, np.uint8)
    places = [place for place in range(1, len(MSRC_CLASSES) + 3) if place not in (19, 20)]
    for value, place in enumerate(places, 1):
        label[(colours == VOC_COLOURS[place]).all(-1)] = value
    write_label(root / f"SegmentationClass/{path.stem.removesuffix('_GT')}.png", label)
    _mark(root, path)


COCO_2017 = (r"((?:train|val)2017/\d+\.jpg)", r"coco/\1")
RECIPES: dict[str, Recipe] = {
    "fss1000": Recipe(((r"([^/]+/(?:10|[1-9])\.(?:jpg|png))", r"\1"),), _count_fss),
    "isaid5i": Recipe(
        ((r"((?:train|val)/(?:images|semantic_png)/[^/]+\.png)", r"\1"),),
        counted(("training patches", "train/images/*.png", 18076), ("validation patches", "val/images/*.png", 6363)),
        _finish_isaid,
    ),
    "isic2018": Recipe(
        ((rf"({IMAGES}|{MASKS})/(?:\d/)?([^/]+\.(?:jpg|png))", r"\1/\2"),),
        counted(("images", f"{IMAGES}/*.jpg", 2594), ("masks", f"{MASKS}/*_segmentation.png", 2594)),
    ),
    "msrc": Recipe(
        (
            (r"Images/(\d+_\d+_s\.bmp)", r"JPEGImages/\1"),
            (r"GroundTruth/(\d+_\d+_s_GT\.bmp)", r"raw/\1"),
            (r"((?:JPEGImages|SegmentationClass)/\d+_\d+_s\.\w+)", r"\1"),
        ),
        counted(("images", "JPEGImages/*.*", 591), ("masks", "SegmentationClass/*.png", 591)),
        _finish_msrc,
    ),
    "deepglobe": Recipe(
        (
            (r"\d/test/origin/([^/]+\.jpg)", r"image/\1"),
            (r"(\d)/test/groundtruth/([^/]+?)_(?:mask|sat)(_\d\d\.png)", r"filter_mask/\1/\2_sat\3"),
            (r"image/([^/]+\.jpg)", r"image/\1"),
            (r"filter_mask/(\d)/([^/]+?)_(?:mask|sat)(_\d\d\.png)", r"filter_mask/\1/\2_sat\3"),
            (r"(\d+_(?:sat\.jpg|mask\.png))", r"raw/\1"),
        ),
        counted(
            ("patches (5666 by the paper, 9174 by its script: unverified)", "image/*.jpg", None),
            ("masks", "filter_mask/*/*.png", None),
        ),
        _finish_deepglobe,
    ),
    "chest_xray": Recipe(
        ((r"(CXR_png|masks)/([^/]+\.png)", r"\1/\2"),),
        counted(
            ("images", "CXR_png/*.png", 800),
            ("masks CHNCXR*_mask", "masks/CHNCXR*_mask.png", 566),
            ("masks MCUCXR*", "masks/MCUCXR*.png", 138),
        ),
        _finish_chest,
    ),
    "suim": Recipe(
        (
            (r"images/([^/]+\.jpg)", r"images/\1"),
            (r"masks/(FV|HD|PF|RI|RO|SR|WR)/([^/]+\.png)", r"masks/\1/\2"),
            (r"masks/([^/]+\.bmp)", r"raw/\1"),
        ),
        _count_suim,
        _finish_suim,
    ),
    "lvis92i": Recipe(((r"(lvis_(?:train|val)\.pkl)", r"\1"), (r"(lvis_v1_val\.json)", r"\1"), COCO_2017), _count_lvis),
    "pascal_part": Recipe(
        (
            (r"(all_obj_part_to_image\.json)", r"\1"),
            (r"(Annotations_Part_json_merged_part_classes/[^/]+\.json)", r"\1"),
            (r"(JPEGImages/[^/]+\.jpg)", r"\1"),
        ),
        _count_parts,
    ),
    "paco_part": Recipe(((r"(paco_part_(?:train|val)\.pkl)", r"\1"), COCO_2017), _count_paco),
}

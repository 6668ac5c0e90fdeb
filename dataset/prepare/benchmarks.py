"""Benchmarks from archives on the disk: where each file belongs, what is made of them, and the known counts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from dataset.benchmarks.deepglobe import DeepGlobe
from dataset.benchmarks.isaid5i import Isaid, mask_path
from dataset.benchmarks.msrc import MSRC_CLASSES
from dataset.benchmarks.pascal_part import KINDS, LIST, part_names, read_parts
from dataset.benchmarks.suim import Suim
from dataset.lists import class_lines, read_pickle
from dataset.prepare.archive import SUFFIXES, extract
from dataset.prepare.check import Finding, compare
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


# Benchmark -> `places` and `counts`; FINISH makes what is left to make, ENTRIES counts what is in lists.
RECIPES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())


def prepare_benchmark(name: str, root: Path, archives: Path | None, workers: int) -> list[Finding]:
    """Unpack into `root` what is there of a benchmark, make what is left to make, and count it.

    `archives` is an archive or a folder of them; None takes the files in `root` as they are. What is there already is
    left alone. UserError when an archive is missing or damaged, or nothing of it belongs to the benchmark.
    """
    for path in _archive_files(archives) if archives else ():
        record = root / ".prepared" / f"{path.name}.{path.stat().st_size}"
        if not record.is_file():
            sizes = extract(path, partial(_place, RECIPES[name]["places"], root))
            if not sizes and archives == path:
                raise UserError(f"{path}: holds no file of {name}; give the archive named in docs/benchmarks.md")
            atomic_write(record, f"{len(sizes)} files\n")
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give --archives, or --root with what is unpacked already")
    if name in FINISH:
        FINISH[name](root, workers)
    entries = ENTRIES[name](root) if name in ENTRIES else ()
    rows = RECIPES[name].get("counts", ())
    return [*entries, *(compare(what, len(_files(root, pattern)), known) for what, pattern, known in rows)]


def _archive_files(source: Path) -> list[Path]:
    files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"{source}: no archive there ({', '.join(SUFFIXES)}); give the file or its folder")
    return files


def _place(places: Sequence[Sequence[str]], root: Path, member: str) -> Path | None:
    for pattern, place in places:
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


def _count_fss(root: Path) -> Iterator[Finding]:
    folder = root / "data" if (root / "data").is_dir() else root
    images = _files(folder, "*/*.jpg")
    yield compare("classes", len({path.parent for path in images}), 1000)
    yield compare("images", len(images), 10000)
    yield compare("masks", len(_files(folder, "*/*.png")), 10000)


def _count_suim(root: Path) -> Iterator[Finding]:
    listed = (root / "lists/suim.txt").read_text().split("\n")
    yield compare("masks that are not empty", sum(len(line.split()[1:]) for line in listed), 3859)


def _count_lvis(root: Path) -> Iterator[Finding]:
    usable = sum(len(images) > 1 for images in read_pickle(root / "lvis_val.pkl").values())
    yield compare("classes of a fold at 1 shot (92 by the paper: unverified)", usable // 10, None)


def _count_paco(root: Path) -> Iterator[Finding]:
    yield compare("training classes", len(read_pickle(root / "paco_part_train.pkl")["cid2img"]), 448)


def _count_parts(root: Path) -> Iterator[Finding]:
    for fold, known in enumerate((31, 4, 5, 16)):
        yield compare(f"parts of {KINDS[fold]}", len(part_names(read_parts(root / LIST, fold))), known)


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


FINISH = {
    "isaid5i": _finish_isaid,
    "msrc": _finish_msrc,
    "deepglobe": _finish_deepglobe,
    "chest_xray": _finish_chest,
    "suim": _finish_suim,
}
ENTRIES = {
    "fss1000": _count_fss,
    "suim": _count_suim,
    "lvis92i": _count_lvis,
    "pascal_part": _count_parts,
    "paco_part": _count_paco,
}

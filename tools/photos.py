"""Segmentation of photographs from few masks: `python -m tools.photos --voc DIR --msrc DIR --methods adapt prototype`.

Prints a table of mean IoU by method and number of masks. VOC: twelve classes, supports from the training list, queries
from the validation list. MSRC v2: six classes that VOC lacks, supports and queries from all images, unlabelled pixels
as background. Every class has some draws of supports, each a prefix of the larger ones, and one of queries.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset.benchmarks.pascal import PASCAL_CLASSES
from dataset.lists import Pair, read_lines, read_list
from dataset.scan import scan_masks
from prediction.predictor import DEFAULT_CONFIG, Predictor
from tools.paper.table import Table
from util.arguments import Parser
from util.config import load_config
from util.errors import UserError, run_main
from util.files import atomic_write
from util.mask import interpret_mask
from util.pixels import IGNORE

VOC = ("aeroplane", "bird", "boat", "bottle", "bus", "car", "cat", "cow", "dog", "horse", "sheep", "train")
MSRC = ("face", "flower", "sign", "book", "tree", "building")
MIN_SHARE = 0.01  # of an image's pixels that a class must have to count there


class PhotoClass(NamedTuple):
    """A class with images that show it; paths of image and mask."""

    name: str
    value: int  # in the masks
    draws: list[list[tuple[Path, Path]]]  # supports, the larger numbers of masks first
    queries: list[tuple[Path, Path]]


class Measured(NamedTuple):
    """What a method made of one number of masks."""

    ious: dict[str, list[float]]  # by class, of every draw
    support_seconds: float  # per support set
    query_seconds: float  # per image


def read_voc(root: Path, masks: int, draws: int, queries: int) -> Iterator[PhotoClass]:
    """The twelve classes of a folder in VOC's layout; UserError for one that has too few images."""
    train, val = (
        images_by_class(root, read_list(path), path) for path in (root / f"ImageSets/{p}.txt" for p in ("train", "val"))
    )
    for name in VOC:
        value = PASCAL_CLASSES.index(name) + 1
        yield drawn(root, name, value, train.get(value, []), val.get(value, []), (masks, draws, queries))


def read_msrc(root: Path, masks: int, draws: int, queries: int) -> Iterator[PhotoClass]:
    """The six classes of MSRC v2: JPEGImages, SegmentationClass and classes.txt, a name a line."""
    names = read_lines(root / "classes.txt")
    images = sorted(path.name for path in (root / "JPEGImages").glob("*.*"))
    pairs = [(f"JPEGImages/{name}", f"SegmentationClass/{Path(name).stem}.png") for name in images]
    found = images_by_class(root, pairs, root / "classes.txt")
    for name in MSRC:
        if name not in names:
            raise UserError(f"{root / 'classes.txt'}: has no class {name}")
        value = names.index(name) + 1
        order = np.random.default_rng([0, value]).permutation(len(found.get(value, [])))
        shuffled = [found[value][i] for i in order]
        yield drawn(root, name, value, shuffled[queries:], shuffled[:queries], (masks, draws, queries))


def images_by_class(root: Path, pairs: Sequence[Pair], source: Path) -> dict[int, list[Pair]]:
    """The pairs of every class that has MIN_SHARE of a mask's pixels."""
    counts, found = scan_masks(root, [mask for _, mask in pairs], source), dict[int, list[Pair]]()
    for pair in pairs:
        total = sum(counts[pair[1]].values())
        for value, pixels in counts[pair[1]].items():
            if pixels >= MIN_SHARE * total:
                found.setdefault(value, []).append(pair)
    return found


def drawn(
    root: Path, name: str, value: int, supports: Sequence[Pair], queries: Sequence[Pair], numbers: tuple[int, int, int]
) -> PhotoClass:
    """Draws of a class from the generator of its own; UserError where there are too few images."""
    masks, draws, wanted = numbers
    if len(supports) < masks or len(queries) < wanted:
        raise UserError(
            f"{root}: class {name} has {len(supports)} and {len(queries)} images; lower --shots or --queries"
        )

    def some(images: Sequence[Pair], count: int, *seed: int) -> list[tuple[Path, Path]]:
        order = np.random.default_rng([*seed, value]).permutation(len(images))[:count]
        return [(root / images[i][0], root / images[i][1]) for i in order]

    return PhotoClass(name, value, [some(supports, masks, 1, d) for d in range(draws)], some(queries, wanted, 2))


def measure(predictor: Predictor, classes: Sequence[PhotoClass], shot: int, ignore: int | None, title: str) -> Measured:
    """IoU of every class over its queries, pixels of the value `ignore` left out, and seconds."""
    ious, seconds, passes = dict[str, list[float]](), [0.0, 0.0], 0
    for each in tqdm(classes, title, leave=False):
        for draw in each.draws:
            start = time.perf_counter()
            chosen = draw[:shot]
            predictor.set_support([image for image, _ in chosen], [(mask, each.value) for _, mask in chosen])
            seconds[0] += time.perf_counter() - start
            overlap = union = 0
            for image, file in each.queries:
                start = time.perf_counter()
                found = predictor.predict(image).mask > 0
                seconds[1] += time.perf_counter() - start
                mask = interpret_mask(file, "index").label
                truth, judged = mask == each.value, mask != ignore
                overlap += int((found & truth & judged).sum())
                union += int(((found | truth) & judged).sum())
            passes += 1
            ious.setdefault(each.name, []).append(overlap / union)
    return Measured(ious, seconds[0] / passes, seconds[1] / passes / len(classes[0].queries))


def row(method: str, name: str, shot: int, found: Measured) -> list[str]:
    """Of the table: mean over classes and draws with the half width of its 95 % interval over classes."""
    means = np.array([np.mean(values) for values in found.ious.values()])
    half = 1.96 * means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else 0.0
    by_class = " ".join(f"{key} {np.mean(values):.2f}" for key, values in found.ious.items())
    seconds = f"{found.support_seconds:.2f}", f"{found.query_seconds:.2f}"
    return [name, str(shot), method, f"{means.mean():.3f} ± {half:.3f}", *seconds, by_class]


def main() -> None:
    """Measure and print."""
    parser = Parser(prog="python -m tools.photos", description="Few masks on photographs.")
    parser.add_argument("--voc", type=Path, metavar="DIR", help="ImageSets, JPEGImages, SegmentationClassAug")
    parser.add_argument("--msrc", type=Path, metavar="DIR", help="JPEGImages, SegmentationClass, classes.txt")
    parser.add_argument("--methods", nargs="+", default=["prototype", "adapt"], help="training-free methods")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5, 15], help="numbers of masks; MSRC: up to 5")
    parser.add_argument("--draws", type=int, default=3, help="of supports of a class")
    parser.add_argument("--queries", type=int, default=12, help="of a class")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="backbone and size")
    parser.add_argument("--out", type=Path, help="Markdown file of the table")
    arguments = parser.parse_args()
    numbers = arguments.draws, arguments.queries
    sets: dict[str, tuple[list[PhotoClass], list[int], int | None]] = {}
    if arguments.voc:
        sets["VOC"] = list(read_voc(arguments.voc, max(arguments.shots), *numbers)), arguments.shots, IGNORE
    if arguments.msrc:
        few = [shot for shot in arguments.shots if shot <= 5]
        sets["MSRC"] = list(read_msrc(arguments.msrc, max(few), *numbers)), few, None
    table = Table("Photographs", ["set", "masks", "method", "mean IoU", "s/support set", "s/image", "classes"])
    cfg = load_config(arguments.config)
    for method in arguments.methods:
        predictor = Predictor.from_method(method, cfg, device="cpu", cache_mb=cfg.feature_cache_mb)
        for name, (classes, shots, ignore) in sets.items():
            for shot in shots:
                found = measure(predictor, classes, shot, ignore, f"{name} {shot} {method}")
                table.rows.append(row(method, name, shot, found))
                print(" | ".join(table.rows[-1]), flush=True)
    text = table.markdown()
    if arguments.out:
        atomic_write(arguments.out, text)
    print(text)


if __name__ == "__main__":
    run_main(main)

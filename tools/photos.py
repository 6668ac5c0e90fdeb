"""Segmentation of photographs from few masks: `python -m tools.photos --voc DIR --msrc DIR --methods adapt prototype`.

Prints a table of mean IoU by method and number of masks. VOC: twelve classes, supports from the training list, queries
from the validation list. MSRC v2: six classes that VOC lacks, supports and queries from all images, unlabelled pixels
as background in supports, and in queries too or, with `--skip-unlabelled`, not judged. Every class has some draws of
supports, each a prefix of the larger ones, and one of queries.
`--absent` adds as many queries without the class: how often something is found there, how often nothing where it is,
and how often a pixel of some probability is the object's.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataset.benchmarks.pascal import PASCAL_CLASSES
from dataset.lists import Pair, read_lines, read_list
from dataset.scan import scan_masks
from model.methods import METHODS
from prediction.joint import together
from prediction.predictor import DEFAULT_CONFIG, Predictor
from tools.paper.table import Table
from util.arguments import Parser
from util.config import Config, load_config
from util.errors import UserError, run_main
from util.files import atomic_write
from util.image import open_image
from util.mask import interpret_mask
from util.pixels import IGNORE

VOC = ("aeroplane", "bird", "boat", "bottle", "bus", "car", "cat", "cow", "dog", "horse", "sheep", "train")
MSRC = ("face", "flower", "sign", "book", "tree", "building")
BOUNDARY = 0.02  # of an image's diagonal: the width of the band in which outlines are compared (Cheng et al., 2021)
BINS = 10  # of probabilities

Files = tuple[Path, Path]  # an image and its mask


class PhotoClass(NamedTuple):
    """A class with images that show it, and some that do not."""

    dataset: str
    name: str
    value: int  # in the masks
    ignored: tuple[int | None, int | None]  # another value, which counts for nothing: in supports and in queries
    draws: list[list[Files]]  # supports, the larger numbers of masks first
    queries: list[Files]
    absent: list[Files]


class Answer(NamedTuple):
    """What was found in one query."""

    counts: NDArray[np.int64]  # (2, 2), intersection and union of the object and of its outline's band
    is_found: bool
    bins: NDArray[np.int64]  # (2, BINS), pixels by probability, and how many of them are the object's
    seconds: float


class Measured(NamedTuple):
    """What a method made of one draw of supports."""

    support_seconds: float
    present: list[Answer]
    absent: list[Answer]


def read_voc(root: Path, numbers: tuple[int, int, int], share: float) -> Iterator[PhotoClass]:
    """The twelve classes of a folder in VOC's layout; UserError for one that has too few images."""
    train, val = (ImagesByClass(root, root / f"ImageSets/{name}.txt", share) for name in ("train", "val"))
    for name in VOC:
        value = PASCAL_CLASSES.index(name) + 1
        yield drawn(root, ("VOC", name, value, (IGNORE, IGNORE)), (train.of(value), *val.split(value)), numbers)


def read_msrc(
    root: Path, numbers: tuple[int, int, int], share: float, ignored: int | None = None
) -> Iterator[PhotoClass]:
    """The six classes of MSRC v2: JPEGImages, SegmentationClass and classes.txt, a name a line."""
    names = read_lines(root / "classes.txt")
    images = sorted(path.name for path in (root / "JPEGImages").glob("*.*"))
    pairs = [(f"JPEGImages/{name}", f"SegmentationClass/{Path(name).stem}.png") for name in images]
    every = ImagesByClass(root, root / "classes.txt", share, pairs)
    for name in MSRC:
        if name not in names:
            raise UserError(f"{root / 'classes.txt'}: has no class {name}")
        value = names.index(name) + 1
        shown, absent = every.split(value)
        shuffled = [shown[i] for i in np.random.default_rng([0, value]).permutation(len(shown))]
        queries = numbers[2]
        yield drawn(
            root, ("MSRC", name, value, (None, ignored)), (shuffled[queries:], shuffled[:queries], absent), numbers
        )


class ImagesByClass:
    """Which images of a list show a class.

    Args: the folder; the list, or the file that stands for it; the share of an image's pixels that a class must have
    to count there; the list's pairs, where it is no list file.
    """

    def __init__(self, root: Path, source: Path, share: float, pairs: Sequence[Pair] | None = None) -> None:
        self.root, self.share = root, share
        self.pairs = read_list(source) if pairs is None else pairs
        self.counts = scan_masks(root, [mask for _, mask in self.pairs], source)

    def of(self, value: int) -> list[Pair]:
        """Those in which a class has more than that share of the pixels."""
        shown = [(pair, self.counts[pair[1]][value]) for pair in self.pairs if value in self.counts[pair[1]]]
        return [pair for pair, pixels in shown if pixels > self.share * self._area(pair[1])]

    def _area(self, mask: str) -> int:
        with open_image(self.root / mask) as header:
            return header.width * header.height

    def split(self, value: int) -> tuple[list[Pair], list[Pair]]:
        """Those, and the images without a pixel of the class."""
        return self.of(value), [pair for pair in self.pairs if not self.counts[pair[1]].get(value)]


def drawn(
    root: Path,
    what: tuple[str, str, int, tuple[int | None, int | None]],
    images: Sequence[Sequence[Pair]],
    numbers: tuple[int, int, int],
) -> PhotoClass:
    """Draws of a class from the generator of its own; UserError where there are too few images.

    Args: the folder; data set, name, value and ignored values; images to draw supports, queries and queries without the
    class from; how many masks, draws and queries.
    """
    supports, queries, absent = images
    masks, draws, wanted = numbers
    _, name, value, _ = what
    if len(supports) < masks or min(len(queries), len(absent)) < wanted:
        counts = f"{len(supports)} images for supports and {len(queries)} for queries"
        raise UserError(f"{root}: class {name} has {counts}; lower --shots or --queries")

    def some(pairs: Sequence[Pair], count: int, *seed: int) -> list[Files]:
        order = np.random.default_rng([*seed, value]).permutation(len(pairs))[:count]
        return [(root / pairs[i][0], root / pairs[i][1]) for i in order]

    draws_of_class = [some(supports, masks, 1, number) for number in range(draws)]
    return PhotoClass(*what, draws_of_class, some(queries, wanted, 2), some(absent, wanted, 3))


def measure(predictor: Predictor, each: PhotoClass, supports: Sequence[Files], absent: bool) -> Measured:
    """What a method finds in a class's queries, and where wanted in those without it."""
    start = time.perf_counter()
    masks: list[Any] = [(mask, each.value) for _, mask in supports]
    if each.ignored[0] is None:  # then what is unlabelled is background
        masks = [interpret_mask(mask, "index").label == each.value for _, mask in supports]
    predictor.set_support([image for image, _ in supports], masks)
    seconds = time.perf_counter() - start
    queries = each.queries, each.absent if absent else []
    return Measured(seconds, *([answer(predictor, each, *files) for files in part] for part in queries))


def answer(predictor: Predictor, each: PhotoClass, image: Path, file: Path) -> Answer:
    """Segment one query and compare it with its mask."""
    start = time.perf_counter()
    prediction = predictor.predict(image)
    seconds = time.perf_counter() - start
    label = interpret_mask(file, "index").label
    truth, judged = label == each.value, label != each.ignored[1]
    found = prediction.mask > 0
    pairs = (found, truth), (band(found), band(truth))
    counts = np.array([[(a & b & judged).sum(), ((a | b) & judged).sum()] for a, b in pairs])
    bins = np.minimum(prediction.probability[judged] * BINS, BINS - 1).astype(int)
    by_bin = np.array([np.bincount(bins, minlength=BINS), np.bincount(bins, truth[judged], BINS)], np.int64)
    return Answer(counts, prediction.is_found, by_bin, seconds)


def band(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (h, w) that are near its outline, the image's edges among it (Cheng et al., CVPR 2021)."""
    width = max(1, round(BOUNDARY * float(np.hypot(*mask.shape))))
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask & (cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1] == 0)


def row(of: tuple[str, str, str], found: dict[str, list[Measured]]) -> list[str]:
    """Of the table: means over classes and draws with the half width of the 95 % interval over classes."""
    sums = {name: [np.sum([a.counts for a in m.present], axis=0) for m in draws] for name, draws in found.items()}
    means = np.array([np.mean([counts[:, 0] / counts[:, 1] for counts in draws], axis=0) for draws in sums.values()])
    every = [measured for draws in found.values() for measured in draws]
    seconds = np.mean([m.support_seconds for m in every]), np.mean([a.seconds for m in every for a in m.present])
    by_class = " ".join(f"{name} {iou:.2f}" for name, (iou, _) in zip(found, means, strict=True))
    return [*of, with_interval(means[:, 0]), with_interval(means[:, 1]), *(f"{s:.2f}" for s in seconds), by_class]


def with_interval(means: NDArray[Any]) -> str:
    """The mean over classes and the half width of its 95 % interval."""
    half = 1.96 * means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else 0.0
    return f"{means.mean():.3f} ± {half:.3f}"


def absent_row(of: tuple[str, str, str], found: dict[str, list[Measured]]) -> list[str]:
    """How often something is found where nothing is, and nothing where something is."""
    every = [measured for draws in found.values() for measured in draws]
    absent, present = (np.mean([a.is_found for m in every for a in part(m)]) for part in PARTS)
    return [*of, f"{absent:.2f}", f"{1 - present:.2f}"]


def bins_row(of: tuple[str, str, str], found: dict[str, list[Measured]]) -> list[str]:
    """Which share of the pixels of each bin of probability is the object's, and the mean difference from the bin's."""
    answers = [a for draws in found.values() for m in draws for part in PARTS for a in part(m)]
    pixels, objects = np.sum([a.bins for a in answers], axis=0)
    shares = objects / pixels.clip(min=1)
    error = float((pixels * abs(shares - (np.arange(BINS) + 0.5) / BINS)).sum() / pixels.sum())
    return [*of, *(f"{share:.2f}" for share in shares), f"{error:.3f}"]


PARTS = (lambda measured: measured.absent), (lambda measured: measured.present)


def open_named(name: str, cfg: Config) -> Predictor:
    """A training-free method with a config, a trained network by name or place, or both together as METHOD+NETWORK."""
    if "+" in name:
        return together(*(open_named(part, cfg) for part in name.split("+", 1)))
    if name in METHODS:
        return Predictor.from_method(name, cfg, device="cpu", cache_mb=cfg.feature_cache_mb)
    return Predictor.from_pretrained(name, "cpu", cfg.feature_cache_mb)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m tools.photos", description="Few masks on photographs.")
    parser.add_argument("--voc", type=Path, metavar="DIR", help="ImageSets, JPEGImages, SegmentationClassAug")
    parser.add_argument("--msrc", type=Path, metavar="DIR", help="JPEGImages, SegmentationClass, classes.txt")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["prototype", "adapt"],
        help="methods without training, networks, METHOD+NETWORK",
    )
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5, 15], help="numbers of masks")
    parser.add_argument("--draws", type=int, default=3, help="of supports of a class")
    parser.add_argument("--queries", type=int, default=12, help="of a class")
    parser.add_argument("--share", type=float, default=0.01, help="of an image's pixels that a class must have there")
    parser.add_argument("--skip-unlabelled", action="store_true", help="MSRC: judge no pixel without a class")
    parser.add_argument("--absent", action="store_true", help="queries without the class too, and the calibration")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="backbone and size")
    parser.add_argument("--out", type=Path, help="Markdown file of the tables")
    arguments = parser.parse_args()
    if not (arguments.voc or arguments.msrc):
        raise UserError("--voc DIR or --msrc DIR: give one or both")
    if min(*arguments.shots, arguments.draws, arguments.queries) < 1:
        raise UserError("--shots, --draws, --queries: should be at least 1")
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse()
    numbers = max(arguments.shots), arguments.draws, arguments.queries
    msrc = partial(read_msrc, ignored=IGNORE if arguments.skip_unlabelled else None)
    readers = (read_voc, arguments.voc), (msrc, arguments.msrc)
    classes = [each for read, root in readers if root for each in read(root, numbers, arguments.share)]
    cfg = load_config(arguments.config)
    predictors = {name: open_named(name, cfg) for name in arguments.methods}
    found = dict[tuple[str, str, str], dict[str, list[Measured]]]()
    for each in tqdm(classes, "classes"):  # all of a class together, as its images' features are kept
        for (name, predictor), shot in product(predictors.items(), arguments.shots):
            results = [measure(predictor, each, draw[:shot], arguments.absent) for draw in each.draws]
            found.setdefault((each.dataset, str(shot), name), {})[each.name] = results
            tqdm.write(" ".join(row((each.dataset, str(shot), name), {each.name: results})))
    head = ["set", "masks", "method"]
    columns = ["mean IoU", "boundary IoU", "s/support set", "s/image", "classes"]
    rows: list[Sequence[str]] = [row(of, each) for of, each in found.items()]
    tables = [Table("Photographs", [*head, *columns], rows)]
    if arguments.absent:
        rates = ["found where it is not", "not found where it is"]
        rows = [absent_row(of, each) for of, each in found.items()]
        tables.append(Table("Absent objects", [*head, *rates], rows))
        bins = [f"{(number + 0.5) / BINS:.2f}" for number in range(BINS)]
        rows = [bins_row(of, each) for of, each in found.items()]
        tables.append(Table("Share of object pixels by probability", [*head, *bins, "mean error"], rows))
    text = "\n".join(table.markdown() for table in tables)
    print(text)
    if arguments.out:
        atomic_write(arguments.out, text)


if __name__ == "__main__":
    run_main(main)

"""What to expect of a support set, before more is labelled: every support is segmented by the others."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from model.inference import FeatureCache
from prediction.masks import object_mask
from prediction.predictor import AVERAGING_FACTOR, Predictor
from prediction.support import SupportClass
from util.errors import printable
from util.files import atomic_open, atomic_write
from util.image import image_size, read_image, resize_mask
from util.pixels import IGNORE

THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(9))  # 0.3 to 0.7
MIDDLE = 0.5
MAX_FOLDS = 5  # support sets that are tried
MAX_HELD = 15  # images that are segmented by others
CACHE_MB = 500  # for the supports' features
LEVEL = 0.95  # of intervals
DISAGREES = 0.5  # of the other supports' median IoU, below which a mask is named
MIN_MASKS = 4  # of a class, from which on one that disagrees is named
CURVE = (1, 2, 5, 10, 20)  # numbers of masks
DRAWS = 3  # of supports for every number


class Trial(NamedTuple):
    """One class in one support, segmented by others."""

    image: Path
    name: str
    ious: Mapping[float, float]  # by threshold


@dataclass(frozen=True)
class Expectation:
    """What one way of segmenting is expected to give."""

    threshold: float
    iou: float  # mean over supports and their classes
    interval: tuple[float, float]  # of that mean, from the supports' spread
    disagreeing: dict[str, list[str]]  # supports by class whose masks the others do not lead to

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.iou:.2f} [{low:.2f}, {high:.2f}]"


def leave_out(predictor: Predictor, support: Sequence[SupportClass], threshold: float | None = None) -> list[Trial]:
    """Segment every support by the others, up to MAX_HELD of them by up to MAX_FOLDS sets; changes the support.

    All THRESHOLDS are tried unless one is given. A class counts where it has another support; there are no trials where
    none has.
    """
    images = list(dict.fromkeys(image for item in support for image in item.images))
    held = images[:MAX_HELD]
    folds = min(len(held), MAX_FOLDS)
    predictor.cache = FeatureCache(predictor.model, CACHE_MB)
    tried = THRESHOLDS if threshold is None else (threshold,)
    sets = [held[number::folds] for number in range(folds)]
    found = [trial for fold in sets for trial in attempt(predictor, support, {*images} - {*fold}, fold, tried)]
    predictor.cache = FeatureCache(predictor.model, 0)
    return found


def attempt(
    predictor: Predictor,
    support: Sequence[SupportClass],
    shown: set[Path],
    held: Sequence[Path],
    thresholds: Sequence[float],
) -> Iterator[Trial]:
    """Segment supports `held` by those `shown`."""
    classes = {}
    for item in support:
        pairs = [pair for pair in zip(item.images, item.masks, strict=True) if pair[0] in shown]
        if pairs:
            classes[item.name] = tuple(map(list, zip(*pairs, strict=True)))
    if not classes:
        return
    predictor.set_support(classes)
    truths = {item.name: dict(zip(item.images, item.masks, strict=True)) for item in support if item.name in classes}
    for path in held:
        image = read_image(path, AVERAGING_FACTOR * predictor.size)
        wanted = {name: masks[path] for name, masks in truths.items() if path in masks}
        prediction = predictor.predict(image)
        for name, mask in wanted.items():
            truth, value = object_mask(mask, image_size(path), str(path)), prediction.names.index(name) + 1
            truth = resize_mask(truth, *image.shape[:2])
            yield Trial(path, name, {t: iou(prediction.at(t).mask == value, truth) for t in thresholds})


def iou(mask: NDArray[np.bool_], truth: NDArray[np.uint8]) -> float:
    """Intersection over union with the truth's value 1, pixels of 255 left out."""
    mask = mask & (truth != IGNORE)
    either = (mask | (truth == 1)).sum()
    return float((mask & (truth == 1)).sum() / either) if either else 1.0


def expect(trials: Sequence[Trial], threshold: float | None = None) -> Expectation:
    """What trials lead one to expect at a threshold that was tried, by default the one at which they came out best.

    That is 0.5 unless another one's gain exceeds its standard error.
    """
    if threshold is None:
        best = max(THRESHOLDS, key=lambda each: ious_at(trials, each).mean())
        threshold = best if is_ahead(ious_at(trials, best), ious_at(trials, MIDDLE)) else MIDDLE
    values = ious_at(trials, threshold)
    return Expectation(threshold, round(float(values.mean()), 4), interval_of(values), disagreeing(trials, threshold))


def ious_at(trials: Sequence[Trial], threshold: float) -> NDArray[np.float64]:
    """The trials' IoU (n,) at a threshold that was tried."""
    return np.array([trial.ious[threshold] for trial in trials])


def is_ahead(values: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether values are on average larger than their partners by more than the standard error of the difference."""
    gain = values - others
    return len(gain) > 2 and float(gain.mean()) > float(gain.std(ddof=1)) / len(gain) ** 0.5 + 1e-9


def interval_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Student's interval of a mean of numbers from 0 to 1; all of that range for one number."""
    if len(values) < 2:
        return 0.0, 1.0
    half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / len(values) ** 0.5
    low, high = np.clip([values.mean() - half, values.mean() + half], 0, 1)
    return round(float(low), 4), round(float(high), 4)


def disagreeing(trials: Sequence[Trial], threshold: float) -> dict[str, list[str]]:
    """By class the supports whose IoU at a threshold is less than DISAGREES of the others' median."""
    found: dict[str, list[str]] = {}
    for name in {trial.name: None for trial in trials}:
        own = {str(trial.image): trial.ious[threshold] for trial in trials if trial.name == name}
        for image in own if len(own) >= MIN_MASKS else ():
            if own[image] < DISAGREES * median(value for other, value in own.items() if other != image):
                found.setdefault(name, []).append(image)
    return found


def better(trials: Mapping[str, Sequence[Trial]], expected: Mapping[str, Expectation]) -> str:
    """The way of several that is used: the first, unless another one is ahead by more than chance."""
    first, *others = trials
    ious = {way: ious_at(trials[way], expected[way].threshold) for way in trials}
    ahead = [way for way in others if is_ahead(ious[way], ious[first])]
    return max(ahead, key=lambda way: expected[way].iou, default=first)


def lines(expected: Mapping[str, Expectation], used: str) -> list[str]:
    """What is said of all ways, and of supports that disagree."""
    others = ", ".join(f"{way} {each}" for way, each in expected.items() if way != used)
    text = f"expect a mean IoU of {expected[used]} on images like these, at a threshold of {expected[used].threshold}"
    named = [
        f"{printable(image)}: its mask of {name!r} disagrees with the other supports; look at it"
        for name, images in expected[used].disagreeing.items()
        for image in images
    ]
    return [text + (f" ({others})" if others else ""), *named]


def write_curve(folder: Path, predictor: Predictor, support: Sequence[SupportClass], threshold: float) -> None:
    """Write the IoU by the number of masks as curve.json and curve.png, if there are any; changes the support."""
    from matplotlib.figure import Figure  # slow to import, and needed here alone

    images = list(dict.fromkeys(image for item in support for image in item.images))
    points: dict[int, tuple[float, float, float]] = {}  # mean and interval by number of masks
    for number in (number for number in CURVE if number < len(images)):
        ious: list[float] = []
        for draw in range(DRAWS):
            order = [images[i] for i in np.random.default_rng([draw, number]).permutation(len(images))]
            trials = attempt(predictor, support, {*order[:number]}, order[number:][:MAX_HELD], (threshold,))
            ious += [trial.ious[threshold] for trial in trials]
        if ious:
            points[number] = (round(float(np.mean(ious)), 4), *interval_of(np.array(ious)))
    if not points:
        warnings.warn("--curve: no class has two supports, one to try the other on; none is written", stacklevel=2)
        return
    rows = [{"masks": number, "iou": mean, "interval": (low, high)} for number, (mean, low, high) in points.items()]
    atomic_write(folder / "curve.json", json.dumps(rows, indent=1) + "\n")
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="images with masks", ylabel="mean IoU", ylim=(0, 1))
    means, lows, highs = (list(column) for column in zip(*points.values(), strict=True))
    axes.plot([*points], means, "o-")
    axes.fill_between([*points], lows, highs, alpha=0.2)
    with atomic_open(folder / "curve.png") as file:
        figure.savefig(file, format="png", dpi=150)


def as_json(expected: Mapping[str, Expectation]) -> dict[str, dict[str, object]]:
    """All ways' expectations for run.json."""
    return {way: asdict(each) for way, each in expected.items()}

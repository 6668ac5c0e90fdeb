"""Two methods on the same episodes: the difference of their mIoU, how sure it is, and who wins how often."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.metric import RESAMPLES

TIE = 0.01  # IoUs of an episode that are no further apart
MOVED = 0.02  # and those that are further apart
Array = NDArray[Any]


class EpisodePixels(NamedTuple):
    """What one method made of the episodes of a fold, in R trainings."""

    classes: Array  # (E,) class of each episode
    hard: Array  # (E,) bool
    pixels: Array  # (R, E, 2) intersection and union of the object

    def hard_only(self) -> "EpisodePixels":
        """Those of the hard episodes."""
        return EpisodePixels(self.classes[self.hard], self.hard[self.hard], self.pixels[:, self.hard])


class Difference(NamedTuple):
    """A difference of mIoU, as a fraction, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self) -> str:
        """In points, as +1.2 [-0.3, +2.7]."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


Pair = tuple[EpisodePixels, EpisodePixels]  # of the same episodes


def difference(pairs: Sequence[Pair]) -> Difference | None:
    """Mean over folds of mIoU of the first minus that of the second, with a percentile bootstrap interval.

    Episodes are drawn again for both alike, trainings for each method by itself, both within each fold. None where a
    fold has fewer than two episodes.
    """
    from scipy.stats import bootstrap  # slow to import, and only needed at the end

    if not pairs or min(len(first.classes) for first, _ in pairs) < 2:
        return None
    samples: list[Array] = []  # scipy draws again from each sample by itself; one training alone is always itself
    places: list[list[int | None]] = []
    for first, second in pairs:
        sizes = len(first.classes), len(first.pixels), len(second.pixels)
        places.append(
            [len(samples) + sum(s > 1 for s in sizes[:i]) if size > 1 else None for i, size in enumerate(sizes)]
        )
        samples += [np.arange(size) for size in sizes if size > 1]

    def statistic(*drawn: Array, axis: int = -1) -> Array:
        values = []
        for pair, (at, *of) in zip(pairs, places, strict=True):
            assert at is not None
            numbers = drawn[at]
            first, second = (
                _miou(answers, numbers, None if place is None else drawn[place])
                for answers, place in zip(pair, of, strict=True)
            )
            values.append(first - second)
        return np.mean(values, axis=0)

    found = bootstrap(samples, statistic, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=0)
    low, high = found.confidence_interval
    return Difference(float(statistic(*samples)), float(low), float(high))


def mean_iou(answers: EpisodePixels) -> float:
    """mIoU, a mean over trainings."""
    return float(_miou(answers, np.arange(len(answers.classes)), None))


def _miou(answers: EpisodePixels, numbers: Array, runs: Array | None) -> Array:
    """mIoU (...) of drawn episodes (..., E), a mean over drawn trainings (..., R)."""
    weights = np.apply_along_axis(np.bincount, -1, numbers, minlength=len(answers.classes))  # (..., E)
    owner = answers.classes == np.unique(answers.classes)[:, None]  # (C, E)
    sums = np.tensordot(weights, answers.pixels[:, None] * owner[..., None], (-1, 2))  # (..., R, C, 2)
    with np.errstate(invalid="ignore"):
        miou = np.nanmean(sums[..., 0] / sums[..., 1], axis=-1)  # (..., R); a class that was not drawn is no class
    return (miou if runs is None else np.take_along_axis(miou, runs, -1)).mean(-1)


def wins(pair: Pair) -> dict[int, tuple[int, int, int]]:
    """Per class: episodes that the first method answers better, as well (within TIE), and worse; trainings averaged."""
    lead, classes = _leads(pair), pair[0].classes
    sides = np.where(np.abs(lead) <= TIE, 1, np.where(lead > 0, 0, 2))
    return {int(c): tuple(np.bincount(sides[classes == c], minlength=3).tolist()) for c in np.unique(classes)}


def moved(pairs: Sequence[Pair]) -> float:
    """The share of episodes whose IoUs, trainings averaged, are more than MOVED apart."""
    return float((np.abs(np.concatenate([_leads(pair) for pair in pairs])) > MOVED).mean())


def _leads(pair: Pair) -> Array:
    """How far the first method's IoU of each episode is above the second's, (E,)."""
    first, second = (_episode_iou(answers.pixels) for answers in pair)
    return first - second


def _episode_iou(pixels: Array) -> Array:
    """Mean over trainings of each episode's IoU, (E,); 1 where nothing is there to be found and nothing was found."""
    union = pixels[..., 1]
    return np.where(union > 0, pixels[..., 0] / np.maximum(union, 1), 1.0).mean(0)

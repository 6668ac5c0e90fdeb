"""Two methods on the same episodes: the difference of their mIoU, how sure it is, and who wins how often."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.metric import RESAMPLES, numbered
from engine.results import Difference

TIE = 0.01  # IoUs of an episode that are no further apart
MOVED = 0.02  # and those that are further apart
Array = NDArray[Any]


class EpisodePixels(NamedTuple):
    """What one method, in R trainings, made of E episodes of a fold."""

    classes: Array  # (E,) class of each episode
    hard: Array  # (E,) bool
    pixels: Array  # (R, E, 2) intersection and union of the object
    images: Array  # (E,) name of each query image

    def hard_only(self) -> "EpisodePixels":
        """Those of the hard episodes."""
        kept = self.hard
        return EpisodePixels(self.classes[kept], self.hard[kept], self.pixels[:, kept], self.images[kept])


Pair = tuple[EpisodePixels, EpisodePixels]  # of the same episodes


def difference(folds: Sequence[Sequence[Pair]]) -> Difference | None:
    """Mean over tests of mIoU of the first minus that of the second, with a percentile bootstrap interval.

    A fold has a pair for each seed of its episodes. Rule: within each fold as many query images are drawn again as it
    has distinct ones over all its seeds, for both methods and all seeds alike; each brings all its episodes. Of each
    test, trainings are drawn again for each method by itself. None where a fold has fewer than two query images.
    """
    from scipy.stats import bootstrap  # slow to import, and only needed at the end

    samples: list[Array] = []  # scipy draws again from each sample by itself; one training alone is always itself
    places: list[tuple[int, Array, Pair, list[int | None]]] = []  # images' sample, image of each episode, trainings'
    for fold in folds:
        images, at = numbered(name for first, _ in fold for name in first.images.tolist()), len(samples)
        if not fold or images.max(initial=0) < 1:
            return None
        samples.append(np.arange(images.max() + 1))
        parts = np.split(images, np.cumsum([len(first.images) for first, _ in fold])[:-1])
        for pair, part in zip(fold, parts, strict=True):
            runs: list[int | None] = []
            for one in pair:
                several = len(one.pixels) > 1
                runs.append(len(samples) if several else None)
                samples += [np.arange(len(one.pixels))] * several
            places.append((at, part, pair, runs))
    if not places:
        return None

    def statistic(*drawn: Array, axis: int = -1) -> Array:
        values = []
        for at, images, pair, runs in places:
            weights = np.apply_along_axis(np.bincount, -1, drawn[at], minlength=len(samples[at]))[..., images]
            first, second = (
                _miou(one, weights, None if run is None else drawn[run]) for one, run in zip(pair, runs, strict=True)
            )
            values.append(first - second)
        return np.mean(values, axis=0)

    found = bootstrap(samples, statistic, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=0)
    low, high = found.confidence_interval
    return Difference(mean=float(statistic(*samples)), low=float(low), high=float(high))


def mean_iou(tested: EpisodePixels) -> float:
    """mIoU, a mean over trainings."""
    return float(_miou(tested, np.ones(len(tested.classes), dtype=int), None))


def _miou(tested: EpisodePixels, weights: Array, runs: Array | None) -> Array:
    """mIoU (...) of episodes that count so often (..., E), a mean over drawn trainings (..., R)."""
    owner = tested.classes == np.unique(tested.classes)[:, None]  # (C, E)
    sums = np.tensordot(weights, tested.pixels[:, None] * owner[..., None], (-1, 2))  # (..., R, C, 2)
    with np.errstate(invalid="ignore"):
        miou = np.nanmean(sums[..., 0] / sums[..., 1], axis=-1)  # (..., R); a class that was not drawn is no class
    return (miou if runs is None else np.take_along_axis(miou, runs, -1)).mean(-1)


def wins(pair: Pair) -> dict[int, tuple[int, int, int]]:
    """Per class: episodes where the first method has the higher IoU, about the same, the lower; trainings averaged."""
    lead, classes = _leads(pair), pair[0].classes
    sides = np.where(np.abs(lead) <= TIE, 1, np.where(lead > 0, 0, 2))
    return {int(c): tuple(np.bincount(sides[classes == c], minlength=3).tolist()) for c in np.unique(classes)}


def moved(pairs: Sequence[Pair]) -> float:
    """The share of episodes whose IoUs, trainings averaged, are more than MOVED apart."""
    return float((np.abs(np.concatenate([_leads(pair) for pair in pairs])) > MOVED).mean())


def _leads(pair: Pair) -> Array:
    """How far the first method's IoU of each episode is above the second's, (E,)."""
    first, second = (_episode_iou(tested.pixels) for tested in pair)
    return first - second


def _episode_iou(pixels: Array) -> Array:
    """Mean over trainings of each episode's IoU, (E,); 1 where nothing is there to be found and nothing was found."""
    union = pixels[..., 1]
    return np.where(union > 0, pixels[..., 0] / np.maximum(union, 1), 1.0).mean(0)

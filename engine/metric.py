"""Pixel counts of episodes and the metrics computed from them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.results import Metrics, Moment
from util.pixels import IGNORE

RESAMPLES = 2000


def count_pixels(prediction: Tensor, target: Tensor, ignore: int = IGNORE) -> Tensor:
    """Intersection and union of background and foreground in one episode, over pixels that are not `ignore`.

    Prediction (h, w) in {0, 1} and target (h, w) in {0, 1, ignore}; returns int64 (2, 2): rows background, foreground;
    columns intersection, union.
    """
    valid = target != ignore
    counts = []
    for value in (0, 1):
        predicted, true = (prediction == value) & valid, target == value
        counts.append(torch.stack([(predicted & true).sum(), (predicted | true).sum()]))
    return torch.stack(counts)  # (2, 2)


def ratio(intersection: int, union: int) -> float | None:
    """IoU, or None where nothing is there to be found and nothing was found."""
    return intersection / union if union else None


def bootstrap_interval(
    values: Sequence[float], images: Sequence[Hashable] | None = None, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean over episodes, the same for the same values.

    Rule: episodes of one query image are alike, so images are drawn again, not episodes. Of C distinct images, C are
    drawn with replacement; each brings all its episodes, and the mean is taken over the episodes that came. Where every
    episode has an image of its own, as without `images`, that is the bootstrap over episodes. None for fewer than two
    distinct images, and so for a single episode: nothing says how far another image would be off.
    """
    from scipy import stats  # slow to import, and only needed at the end

    owner = numbered(images or range(len(values)))
    if owner.max(initial=0) < 1:
        return None
    if len(set(values)) < 2:
        return values[0], values[0]
    sums, counts = np.bincount(owner, values), np.bincount(owner)

    def mean(drawn: NDArray[Any], axis: int = -1) -> NDArray[Any]:
        return sums[drawn].sum(axis) / counts[drawn].sum(axis)

    options: dict[str, Any] = {"confidence_level": level, "n_resamples": RESAMPLES, "method": "percentile", "rng": seed}
    interval = stats.bootstrap((np.arange(len(sums)),), mean, vectorized=True, **options).confidence_interval
    return float(interval.low), float(interval.high)


def numbered(names: Iterable[Hashable]) -> NDArray[Any]:
    """The number of each name, in the order in which they first come."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=int)


def summarize(
    counts: Tensor,
    class_ids: Sequence[int],
    classes: Sequence[int],
    seconds: float = 0.0,
    compute_seconds: float = 0.0,
    hard: Sequence[bool] | None = None,
    queries: Sequence[str] | None = None,
) -> Metrics:
    """All metrics from the pixel counts (E, 2, 2) of E episodes, the class of each, and the classes of the fold.

    `seconds` and `compute_seconds` are totals; `hard` says which episodes show another class too, by default none;
    `queries` names the query images, by default all different. Raises ValueError when no episode has a pixel to be
    judged.
    """
    owner, is_hard = torch.tensor(class_ids), torch.tensor(hard or [False] * len(class_ids))
    names = list(queries or map(str, range(len(class_ids))))
    episode_iou = [ratio(*pair) for pair in counts[:, 1].tolist()]
    known = {number: value for number, value in enumerate(episode_iou) if value is not None}
    class_pixels = {c: counts[owner == c].sum(0).tolist() for c in classes}
    class_iou = {c: ratio(*pixels[1]) for c, pixels in class_pixels.items()}
    hard_iou = {c: ratio(*counts[is_hard & (owner == c), 1].sum(0).tolist()) for c in classes}
    drawn, hard_drawn = ([value for value in iou.values() if value is not None] for iou in (class_iou, hard_iou))
    if not known or not drawn:
        raise ValueError("no episode has a foreground pixel in its mask or in its prediction")
    background, foreground = (ratio(*pair) for pair in counts.sum(0).tolist())
    foreground = foreground or 0.0
    return Metrics(
        miou=fmean(drawn),
        fb_iou=foreground if background is None else (background + foreground) / 2,
        piou=foreground,
        class_iou=class_iou,
        class_episodes={c: int((owner == c).sum()) for c in classes},
        class_pixels=class_pixels,
        mean_episode_iou=fmean(known.values()),
        interval=bootstrap_interval(list(known.values()), [names[number] for number in known]),
        query_images=len(set(names)),
        episode_iou=episode_iou,
        episode_pixels=counts.tolist(),
        episode_query=names,
        episode_class=list(class_ids),
        episode_hard=is_hard.tolist(),
        hard_miou=fmean(hard_drawn) if hard_drawn else None,
        hard_class_iou=hard_iou,
        seconds=seconds,
        seconds_per_episode=compute_seconds / len(counts),
    )


def aggregate(results: Sequence[Metrics]) -> dict[str, Moment]:
    """Mean and sample standard deviation (None for one result) of every scalar metric over several seeds."""
    names = ("miou", "fb_iou", "piou", "mean_episode_iou", "seconds_per_episode")
    return {name: moment([float(getattr(result, name)) for result in results]) for name in names}


def moment(values: Sequence[float]) -> Moment:
    """Mean and sample standard deviation of some values; None for what there are too few of."""
    return Moment(mean=fmean(values) if values else None, std=stdev(values) if len(values) > 1 else None)


def format_table(results: Mapping[str, Metrics], names: Mapping[int, str]) -> str:
    """A table for people, in per cent: a row per class and metric, a column per result (by its heading)."""
    columns = list(results.values())
    rows = [["", *results]]
    for class_id in columns[0].class_iou:
        rows.append([f"{class_id} {names[class_id]}", *(percent(r.class_iou[class_id], "not drawn") for r in columns)])
    labels = {"mIoU": "miou", "FB-IoU": "fb_iou", "pIoU": "piou"}
    rows += [[label, *(percent(getattr(r, name)) for r in columns)] for label, name in labels.items()]
    if any(any(r.episode_hard) for r in columns):
        rows.append(["mIoU, hard episodes", *(percent(r.hard_miou) for r in columns)])
        rows.append(["  so many of them", *(str(sum(r.episode_hard)) for r in columns)])
    rows.append(["mean episode IoU", *(percent(r.mean_episode_iou) for r in columns)])
    rows.append(["  95 % interval", *(" - ".join(map(percent, r.interval)) if r.interval else "-" for r in columns)])
    rows.append(["episodes", *(str(len(r.episode_iou)) for r in columns)])
    rows.append(["  distinct query images", *(str(r.query_images) for r in columns)])
    rows.append(["seconds per episode", *(f"{r.seconds_per_episode:.3f}" for r in columns)])
    text = aligned(rows)
    if len(columns) > 1:
        means = aggregate(columns)
        for label, name in labels.items():
            mean, std = means[name].mean, means[name].std
            text += f"\n{label} over {len(columns)} seeds: {percent(mean)} +- {percent(std)}"
    return text


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table for a terminal."""
    from tabulate import tabulate

    columns = ("left", *["right"] * (len(rows[0]) - 1))
    options: dict[str, Any] = {"tablefmt": "plain", "disable_numparse": True, "preserve_whitespace": True}
    return tabulate(rows, colalign=columns, **options)


def percent(value: float | None, otherwise: str = "-") -> str:
    """A fraction as 12.34, or what stands for None."""
    return otherwise if value is None else f"{100 * value:.2f}"

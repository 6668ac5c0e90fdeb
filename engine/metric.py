"""Pixel counts of episodes and the figures computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from util.pixels import IGNORE

RESAMPLES = 2000


@dataclass(frozen=True)
class Result:
    """Figures of one evaluation, all IoUs as fractions; what no episode shows is None."""

    miou: float  # mean over the classes that were drawn
    fb_iou: float  # mean of foreground and background
    piou: float  # the foreground part of fb_iou
    class_iou: dict[int, float | None]  # by class number
    class_episodes: dict[int, int]
    mean_episode_iou: float
    interval: tuple[float, float]  # 95 % bootstrap interval of mean_episode_iou
    episode_iou: list[float | None]  # in episode order
    episode_pixels: list[list[list[int]]]  # (E, 2, 2) as count_pixels
    episode_class: list[int]
    episode_hard: list[bool]  # whether the query shows another annotated class
    hard_miou: float | None  # miou of the hard episodes alone: only they need the support to tell which class is meant
    hard_class_iou: dict[int, float | None]
    seconds: float  # from the first to the last episode, loading included
    seconds_per_episode: float  # in the network and the resize of its scores

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the pixel counts."""
        return {name: value for name, value in asdict(self).items() if name != "episode_pixels"}


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


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, the same for the same values."""
    from scipy import stats  # slow to import, and only needed at the end

    if len(set(values)) < 2:
        return values[0], values[0]
    options: dict[str, Any] = {"confidence_level": level, "n_resamples": RESAMPLES, "method": "percentile", "rng": seed}
    interval = stats.bootstrap((values,), np.mean, **options).confidence_interval
    return float(interval.low), float(interval.high)


def summarize(
    counts: Tensor,
    class_ids: Sequence[int],
    classes: Sequence[int],
    seconds: float = 0.0,
    compute_seconds: float = 0.0,
    hard: Sequence[bool] | None = None,
) -> Result:
    """All figures from the pixel counts (E, 2, 2) of E episodes, the class of each, and the classes of the fold.

    `seconds` and `compute_seconds` are totals; `hard` says which episodes show another class too, by default none.
    Raises ValueError when no episode has a pixel to be judged.
    """
    owner, is_hard = torch.tensor(class_ids), torch.tensor(hard or [False] * len(class_ids))
    episode_iou = [ratio(*pair) for pair in counts[:, 1].tolist()]
    known = [value for value in episode_iou if value is not None]
    class_iou, hard_iou = (
        {c: ratio(*counts[chosen & (owner == c), 1].sum(0).tolist()) for c in classes}
        for chosen in (torch.ones_like(is_hard), is_hard)
    )
    drawn, hard_drawn = ([value for value in iou.values() if value is not None] for iou in (class_iou, hard_iou))
    if not known or not drawn:
        raise ValueError("no episode has a foreground pixel in its mask or in its prediction")
    background, foreground = (ratio(*pair) for pair in counts.sum(0).tolist())
    foreground = foreground or 0.0
    return Result(
        miou=fmean(drawn),
        fb_iou=foreground if background is None else (background + foreground) / 2,
        piou=foreground,
        class_iou=class_iou,
        class_episodes={c: int((owner == c).sum()) for c in classes},
        mean_episode_iou=fmean(known),
        interval=bootstrap_interval(known),
        episode_iou=episode_iou,
        episode_pixels=counts.tolist(),
        episode_class=list(class_ids),
        episode_hard=is_hard.tolist(),
        hard_miou=fmean(hard_drawn) if hard_drawn else None,
        hard_class_iou=hard_iou,
        seconds=seconds,
        seconds_per_episode=compute_seconds / len(counts),
    )


def aggregate(results: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation (None for one result) of every scalar figure over several seeds."""
    figures = ("miou", "fb_iou", "piou", "mean_episode_iou", "seconds_per_episode")
    values = {name: [float(getattr(result, name)) for result in results] for name in figures}
    return {name: {"mean": fmean(v), "std": stdev(v) if len(v) > 1 else None} for name, v in values.items()}


def format_table(results: Mapping[str, Result], names: Mapping[int, str]) -> str:
    """A table for people, in per cent: a row per class and figure, a column per result (by its heading)."""
    columns = list(results.values())
    rows = [("", *results)]
    for class_id in columns[0].class_iou:
        rows.append((f"{class_id} {names[class_id]}", *(percent(r.class_iou[class_id], "not drawn") for r in columns)))
    rows.append(("mIoU", *(percent(r.miou) for r in columns)))
    rows.append(("FB-IoU", *(percent(r.fb_iou) for r in columns)))
    rows.append(("pIoU", *(percent(r.piou) for r in columns)))
    if any(any(r.episode_hard) for r in columns):
        rows.append(("mIoU, hard episodes", *(percent(r.hard_miou) for r in columns)))
        rows.append(("  so many of them", *(str(sum(r.episode_hard)) for r in columns)))
    rows.append(("mean episode IoU", *(percent(r.mean_episode_iou) for r in columns)))
    rows.append(("  95 % interval", *(" - ".join(percent(limit) for limit in r.interval) for r in columns)))
    rows.append(("episodes", *(str(len(r.episode_iou)) for r in columns)))
    rows.append(("seconds per episode", *(f"{r.seconds_per_episode:.3f}" for r in columns)))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    if len(columns) > 1:
        figures = aggregate(columns)
        for name, label in (("miou", "mIoU"), ("fb_iou", "FB-IoU"), ("piou", "pIoU")):
            mean, std = figures[name]["mean"], figures[name]["std"]
            lines.append(f"{label} over {len(columns)} seeds: {percent(mean)} +- {percent(std)}")
    return "\n".join(lines)


def percent(value: float | None, otherwise: str = "-") -> str:
    """A fraction as 12.34, or what stands for None."""
    return otherwise if value is None else f"{100 * value:.2f}"

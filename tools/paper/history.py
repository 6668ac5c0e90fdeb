"""What runs have written: courses of training and metrics of tests, for learning curves and bars."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from engine.results import OneClassResult, TrainingResult, read_result
from util.errors import UserError

EPOCH = re.compile(r"epoch (\d+) mean loss ([-\d.e+]+) (.+?) ([\d.]+)(?:,|$)")
SUMMARY = {"miou": "mIoU", "fb_iou": "FB-IoU", "mean_episode_iou": "mean of episodes"}


@dataclass
class Course:
    """One training: by epoch the mean loss and the accuracy, and by position in epochs what was validated."""

    path: Path
    loss: dict[int, float] = field(default_factory=dict)
    train_accuracy: dict[int, float] = field(default_factory=dict)
    measure: str = ""  # what the accuracy is
    validations: list[dict[str, float]] = field(default_factory=list)  # epoch, miou, fb_iou, piou as fractions


def read_course(path: Path) -> Course:
    """The course of a training from its result.json (result_train5.json), or from the folder of the run.

    The losses come from the log beside it; an epoch that was trained again after an interruption counts as it was last.
    Raises UserError where neither is.
    """
    result = path / "result.json" if path.is_dir() or not path.suffix else path
    log = result.with_name(result.stem.replace("result", "log", 1) + ".txt")
    if not result.is_file() and not log.is_file():
        raise UserError(f"{path}: no training here: neither {result} nor {log} exists; give the folder of a run")
    course = Course(result)
    if result.is_file():
        course.validations = read_result(result, TrainingResult).validations
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        if found := EPOCH.search(line):
            epoch, course.measure = int(found[1]), found[3]
            course.loss[epoch], course.train_accuracy[epoch] = float(found[2]), float(found[4])
    return course


class Bar(NamedTuple):
    """An IoU in per cent with what is known of its uncertainty; None where its class was not drawn."""

    iou: float | None
    low: float | None = None
    high: float | None = None


def read_bars(path: Path) -> dict[str, Bar]:
    """The IoU of every class by its name, then mIoU, FB-IoU and the mean over episodes, averaged over a test's seeds.

    Limits are one standard deviation over seeds where there are several, and for the mean over the episodes of a single
    seed the 95 % bootstrap interval. Raises UserError for a file that is not of a test.
    """
    result = read_result(path, OneClassResult)
    rows = result.results
    series = {result.classes[key]: [row.class_iou[key] for row in rows] for key in rows[0].class_iou}
    series |= {name: [getattr(row, key) for row in rows] for key, name in SUMMARY.items()}
    bars = {}
    for name, values in series.items():
        known = [100 * value for value in values if value is not None]
        mean, spread = fmean(known) if known else None, stdev(known) if len(known) > 1 else None
        bars[name] = Bar(mean) if mean is None or spread is None else Bar(mean, mean - spread, mean + spread)
    if len(rows) == 1 and rows[0].interval:
        name = SUMMARY["mean_episode_iou"]
        bars[name] = Bar(bars[name].iou, *(100 * limit for limit in rows[0].interval))
    return bars


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell paths apart: the parts in which they differ; of a single one its last folder."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < 2:
        return [path.parent.name if path.suffix else path.name for path in paths]
    while len({own[:1] for own in parts}) == 1:
        parts = [own[1:] for own in parts]
    while len({own[-1:] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    return ["/".join(own) or "." for own in parts]

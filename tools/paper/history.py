"""What runs have written: courses of training and figures of tests, for learning curves and bars."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.paper.runs import read_json
from util.errors import UserError

EPOCH = re.compile(r"epoch (\d+) mean loss ([-\d.e+]+) (.+?) ([\d.]+)(?:,|$)")


@dataclass
class Course:
    """One training: by epoch the mean loss and the share of hits, and by position in epochs what was validated."""

    path: Path
    loss: dict[int, float] = field(default_factory=dict)
    hits: dict[int, float] = field(default_factory=dict)
    hits_of: str = ""
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
        content = read_json(result)
        if content.get("kind") != "training":
            raise UserError(f"{result}: not the result of a training (its kind is {content.get('kind')!r})")
        course.validations = content["validations"]
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        if found := EPOCH.search(line):
            epoch = int(found[1])
            course.loss[epoch], course.hits_of, course.hits[epoch] = float(found[2]), found[3], float(found[4])
    return course


@dataclass
class Bars:
    """One test: IoU by class and its summary, in per cent, with what is known of their uncertainty."""

    path: Path
    values: dict[str, float | None]  # by class name, then mIoU, FB-IoU and the mean over episodes; None: not drawn
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)


SUMMARY = {"miou": "mIoU", "fb_iou": "FB-IoU", "mean_episode_iou": "mean of episodes"}


def read_bars(path: Path) -> Bars:
    """The figures of a result_test_*.json, averaged over its seeds.

    Limits are one standard deviation over seeds where there are several, and for the mean over the episodes of a single
    seed the 95 % bootstrap interval. Raises UserError for a file that is not of a test.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a result_test_*.json as test.py writes it")
    content = read_json(path)
    if content.get("kind") != "test":
        raise UserError(f"{path}: not the result of a test (its kind is {content.get('kind')!r})")
    results, names = content["results"], content["classes"]
    series = {names[key]: [row["class_iou"][key] for row in results] for key in results[0]["class_iou"]}
    series |= {name: [row[key] for row in results] for key, name in SUMMARY.items()}
    bars = Bars(path, {})
    for name, values in series.items():
        known = [100 * value for value in values if value is not None]
        bars.values[name] = mean = sum(known) / len(known) if known else None
        if mean is not None and len(known) > 1:
            spread = (sum((value - mean) ** 2 for value in known) / (len(known) - 1)) ** 0.5
            bars.low[name], bars.high[name] = mean - spread, mean + spread
    if len(results) == 1:
        low, high = results[0]["interval"]
        bars.low[SUMMARY["mean_episode_iou"]], bars.high[SUMMARY["mean_episode_iou"]] = 100 * low, 100 * high
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


def as_rows(bars: Sequence[Bars], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per test and bar, for CSV and JSON."""
    return [
        {"run": name, "class": key, "iou": value, "low": test.low.get(key), "high": test.high.get(key)}
        for name, test in zip(names, bars, strict=True)
        for key, value in test.values.items()
    ]

"""Tests of several methods on the same episodes, read from the files that `test.py` leaves."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from engine.comparison import MOVED, EpisodePixels, Pair, difference, mean_iou, moved, wins
from engine.support_check import CHANGES
from tools.paper.runs import read_json
from tools.paper.table import Table
from util.errors import UserError
from util.schema import keys_of

FALLS = ("fall", "hard_fall")  # of all episodes and of hard ones
Fold = tuple[str, int, int, int]  # data set, split, shots, seed of the episodes


class Test(NamedTuple):
    """One training's answers to the episodes of one fold and seed."""

    path: Path
    episodes: list[Any]  # query, class and supports of each
    answers: EpisodePixels  # of one training
    names: Mapping[int, str]  # of classes
    miou_drop: Mapping[tuple[str, str], float]  # of mIoU, fractions, by the keys of CHANGES and FALLS


Tests = dict[Fold, list[Test]]


def read_tests(where: Path) -> Tests:
    """The tests of one method by fold: of a result file, of all that a pattern names, or of all below a folder.

    UserError when there is none, when they are of several methods, and when two of a fold have other episodes.
    """
    root = Path(where.anchor)
    files = where.rglob("result_test*.json") if where.is_dir() else root.glob(str(where.relative_to(where.anchor)))
    tests = tests_in(sorted(files))
    if not tests:
        raise UserError(f"{where}: no result of a test there; name a result_test_*.json or a folder of some")
    return tests


def tests_in(files: Iterable[Path]) -> Tests:
    """The tests in these result files, one for each training; UserError as `read_tests`."""
    tests: Tests = {}
    known: tuple[Path, Any] | None = None
    for path in files:
        content = read_json(path)
        if content.get("kind") == "test":
            method = content["method"], [content["config"].get(key) for key in (*keys_of("network"), "ann_type")]
            known = known or (path, method)
            if method != known[1]:
                raise UserError(
                    f"{path}: not the method of {known[0]}; name a folder or pattern with one method's results"
                )
            for fold, test in _tests_of(path, content):
                tests.setdefault(fold, []).append(test)
    for of_fold in tests.values():
        check_same(of_fold)
    return tests


def episodes_file(path: Path) -> Path:
    """Where `test.py` leaves the episodes of a result."""
    return path.with_suffix(".episodes.jsonl")


def comparable(first: Tests, second: Tests) -> bool:
    """Whether two methods have a fold in common, with the same episodes and files of their own."""
    folds = [(first[fold], second[fold]) for fold in first if fold in second]
    return bool(folds) and all(
        a[0].episodes == b[0].episodes and not {t.path for t in a} & {t.path for t in b} for a, b in folds
    )


def _tests_of(path: Path, content: Mapping[str, Any]) -> list[tuple[Fold, Test]]:
    lines = episodes_file(path)
    try:
        rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        by_seed = {row["seed"]: [each for each in rows if each["seed"] == row["seed"]] for row in rows}
        cfg, names = content["config"], {int(number): name for number, name in content["classes"].items()}
        found = []
        checks = content.get("support_check", {}).items()
        miou_drop = {(key, some): check[some]["mean"] for key, check in checks for some in FALLS if check[some]}
        for seed, of_seed in by_seed.items():
            pixels = np.array([[[row["intersection"][1], row["union"][1]] for row in of_seed]])  # (1, E, 2)
            answers = EpisodePixels(
                np.array([r["class_id"] for r in of_seed]), np.array([r["hard"] for r in of_seed]), pixels
            )
            episodes = [(row["query"], row["class_id"], tuple(row["support"])) for row in of_seed]
            test = Test(path, episodes, answers, names, miou_drop)
            found.append(((cfg["data_set"], cfg["split"], cfg["shot"], seed), test))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{lines}: no readable episodes of {path} there; test again") from None
    return found


def check_same(tests: Sequence[Test]) -> None:
    """UserError unless all tests were made on the same episodes."""
    for test in tests[1:]:
        if test.episodes != tests[0].episodes:
            raise UserError(
                f"{test.path}: other episodes than {tests[0].path}; test both with the same seeds and lists"
            )


def pair_folds(first: Tests, second: Tests) -> dict[Fold, Pair]:
    """The answers of two methods to the folds that both were tested on; UserError when there is none."""
    shared = [fold for fold in first if fold in second]
    if not shared:
        path, other = (next(iter(tests.values()))[0].path for tests in (first, second))
        raise UserError(f"{path} and {other}: no fold, shot and seed in common; test both alike")
    for fold in shared:
        check_same([*first[fold], *second[fold]])
    return {fold: (stacked(first[fold]), stacked(second[fold])) for fold in shared}


def stacked(tests: Sequence[Test]) -> EpisodePixels:
    """Several trainings' answers as one."""
    return tests[0].answers._replace(pixels=np.concatenate([test.answers.pixels for test in tests]))


def comparison_table(title: str, methods: Mapping[str, Tests]) -> Table:
    """A row per method: mIoU, and how far the first method is ahead of it, on all and on hard episodes.

    Where the support check was made, what mIoU loses by supports of another class and by an emptied mask, of all and
    of hard episodes.
    """
    (lead, reference), *_ = methods.items()
    columns = ["", "trainings", "mIoU", f"{lead} ahead by", "hard", f"{lead} ahead by"]
    columns += ["other class", "hard", "emptied mask", "hard"]
    rows: list[Sequence[str]] = []
    for name, tests in methods.items():
        pairs = list(pair_folds(reference, tests).values())
        hard = [(a.hard_only(), b.hard_only()) for a, b in pairs]
        cells = [str(sum(len(of_fold) for fold, of_fold in tests.items() if fold in reference))]
        for some in (pairs, hard):
            own = [mean_iou(answers) for _, answers in some if len(answers.classes)]
            found = difference(some) if tests is not reference else None
            cells += [f"{100 * fmean(own):.1f}" if own else "-", found.text() if found else "-"]
        for key in product(CHANGES, FALLS):
            miou_drop = [test.miou_drop[key] for of_fold in tests.values() for test in of_fold if key in test.miou_drop]
            cells.append(f"{0.0 - 100 * fmean(miou_drop):+.1f}" if miou_drop else "-")
        rows.append((name, *cells))
    folds = ", ".join(f"{data} {split} ({shot} shot, seed {seed})" for data, split, shot, seed in reference)
    notes = [f"Means over {folds}; 95 % intervals by a bootstrap over episodes and trainings, of the same episodes."]
    return Table(title, columns, rows, [*notes, "Last columns: what the wrong support does to mIoU."])


def wins_table(names: tuple[str, str], pairs: Mapping[Fold, Pair], classes: Mapping[int, str]) -> Table:
    """Episodes that the first method answers better, as well, and worse, by class."""
    table = Table(f"{names[0]} against {names[1]}, episodes by class", ("class", "better", "equal", "worse"))
    for pair in pairs.values():
        table.rows += [(classes[c], *map(str, counts)) for c, counts in wins(pair).items()]
    table.notes.append("Equal: IoUs, means over trainings, no more than a point apart.")
    table.notes.append(f"Of all episodes, {moved(list(pairs.values())):.1%} have IoUs more than {MOVED} apart.")
    return table

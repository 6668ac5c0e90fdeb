"""Tests of several methods on the same episodes, read from the files that `test.py` leaves."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from engine.comparison import MOVED, EpisodePixels, Pair, difference, mean_iou, moved, wins
from engine.results import EpisodeRow, OneClassResult, checked_rows, read_any, without_stale
from engine.support_check import CHANGES
from tools.paper.table import Table
from util.errors import UserError
from util.schema import keys_of

DROPS = ("miou_drop", "hard_miou_drop")  # of all episodes and of hard ones
INTERVALS = "95 % intervals by a bootstrap over query images, the same for both methods, and over trainings"
Fold = tuple[str, int, int]  # data set, split, shots


class Test(NamedTuple):
    """One training's test of the episodes of one fold and seed."""

    result: OneClassResult
    rows: Sequence[EpisodeRow]

    @property
    def episodes(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """Query, class and supports of each."""
        return [(row.query, row.class_id, tuple(row.support)) for row in self.rows]


Tests = dict[tuple[Fold, int], list[Test]]  # by fold and seed of the episodes


def read_tests(where: Path) -> Tests:
    """The tests of one method by fold: of a result file, of all that a pattern names, or of all below a folder.

    A warning names results of other weights than lie there now, which do not count. UserError when there is none left,
    when they are of several methods, and when two of a fold have other episodes.
    """
    root = Path(where.anchor)
    files = where.rglob("result_test*.json") if where.is_dir() else root.glob(str(where.relative_to(where.anchor)))
    found = map(read_any, sorted(files))
    tests = tests_of(without_stale(result for result in found if isinstance(result, OneClassResult)))
    if not tests:
        raise UserError(f"{where}: no result of a test there; name a result_test_*.json or a folder of some")
    return tests


def tests_of(results: Iterable[OneClassResult]) -> Tests:
    """The tests of these results, one for each training; UserError as `read_tests`."""
    tests: Tests = {}
    known: tuple[Path, object] | None = None
    for result in results:
        cfg = result.cfg
        method = result.method, [getattr(cfg, key) for key in (*keys_of("network"), "ann_type")]
        known = known or (result.path, method)
        if method != known[1]:
            raise UserError(
                f"{result.path}: not the method of {known[0]}; name a folder or pattern with one method's results"
            )
        for seed, rows in checked_rows(result).items():
            tests.setdefault(((cfg.data_set, cfg.split, cfg.shot), seed), []).append(Test(result, rows))
    for of_fold in tests.values():
        check_same(of_fold)
    return tests


def comparable(first: Tests, second: Tests) -> bool:
    """Whether two methods have a fold in common, with the same episodes and files of their own."""
    folds = [(first[fold], second[fold]) for fold in first if fold in second]
    paths = [[{test.result.path for test in tests} for tests in both] for both in folds]
    return bool(folds) and all(
        a[0].episodes == b[0].episodes and not own & other for (a, b), (own, other) in zip(folds, paths, strict=True)
    )


def check_same(tests: Sequence[Test]) -> None:
    """UserError unless all tests were made on the same episodes."""
    for test in tests[1:]:
        if test.episodes != tests[0].episodes:
            raise UserError(
                f"{test.result.path}: other episodes than {tests[0].result.path}; test both with the same seeds and "
                "lists"
            )


def pair_folds(first: Tests, second: Tests) -> dict[tuple[Fold, int], Pair]:
    """Two methods on the folds and seeds that both were tested on; UserError when there is none."""
    shared = [fold for fold in first if fold in second]
    if not shared:
        path, other = (next(iter(tests.values()))[0].result.path for tests in (first, second))
        raise UserError(f"{path} and {other}: no fold, shot and seed in common; test both alike")
    for fold in shared:
        check_same([*first[fold], *second[fold]])
    return {fold: (stacked(first[fold]), stacked(second[fold])) for fold in shared}


def stacked(tests: Sequence[Test]) -> EpisodePixels:
    """Several trainings on the same episodes as one."""
    classes, hard, images = zip(*((row.class_id, row.hard, row.query) for row in tests[0].rows), strict=True)
    pixels = [
        [(row.intersection[1], row.union[1]) for row in test.rows if row.intersection and row.union] for test in tests
    ]
    return EpisodePixels(np.array(classes), np.array(hard), np.array(pixels), np.array(images))


def by_fold(pairs: Mapping[tuple[Fold, int], Pair]) -> list[list[Pair]]:
    """The pairs of every fold, one for each seed."""
    folds: dict[Fold, list[Pair]] = {}
    for (fold, _), pair in pairs.items():
        folds.setdefault(fold, []).append(pair)
    return list(folds.values())


def comparison_table(title: str, methods: Mapping[str, Tests]) -> Table:
    """A row per method: mIoU, and how far the first method is ahead of it, on all and on hard episodes.

    Where the support check was made, how mIoU changes by supports of another class and by an emptied mask, of all and
    of hard episodes.
    """
    (lead, reference), *_ = methods.items()
    columns = ["", "trainings", "mIoU", f"{lead} ahead by", "hard", f"{lead} ahead by"]
    columns += ["other class", "hard", "emptied mask", "hard"]
    rows: list[Sequence[str]] = []
    for name, tests in methods.items():
        folds = by_fold(pair_folds(reference, tests))
        hard = [[(a.hard_only(), b.hard_only()) for a, b in pairs] for pairs in folds]
        cells = [str(sum(len(of_fold) for fold, of_fold in tests.items() if fold in reference))]
        for some in (folds, hard):
            own = [mean_iou(tested) for pairs in some for _, tested in pairs if len(tested.classes)]
            found = difference(some) if tests is not reference else None
            cells += [f"{100 * fmean(own):.1f}" if own else "-", found.text() if found else "-"]
        cells += [change_text(tests, change, drop) for change, drop in product(CHANGES, DROPS)]
        rows.append((name, *cells))
    parts = [fold_text(*fold, tests[0]) for fold, tests in reference.items()]
    notes = [f"Means over {', '.join(parts)}; {INTERVALS}.", "Last columns: what the wrong support does to mIoU."]
    return Table(title, columns, rows, notes)


def change_text(tests: Tests, change: str, drop: str) -> str:
    """How mIoU changes with wrong supports, a mean over tests, in points."""
    checks = [t.result.support_check.get(change) for of_fold in tests.values() for t in of_fold]
    found = [value.mean for check in checks if check and (value := getattr(check, drop))]
    return f"{0.0 - 100 * fmean(found):+.1f}" if found else "-"


def fold_text(fold: Fold, seed: int, test: Test) -> str:
    """What one test rests on."""
    (data, split, shot), images = fold, len({row.query for row in test.rows})
    return f"{data} {split} ({shot} shot, seed {seed}: {len(test.rows)} episodes, {images} query images)"


def wins_table(names: tuple[str, str], pairs: Mapping[tuple[Fold, int], Pair], classes: Mapping[int, str]) -> Table:
    """In how many episodes of each class the first method is better, equal and worse."""
    table = Table(f"{names[0]} against {names[1]}, episodes by class", ("class", "better", "equal", "worse"))
    for pair in pairs.values():
        table.rows += [(classes[c], *map(str, counts)) for c, counts in wins(pair).items()]
    table.notes.append("Equal: IoUs, means over trainings, no more than a point apart.")
    table.notes.append(f"Of all episodes, {moved(list(pairs.values())):.1%} have IoUs more than {MOVED} apart.")
    return table

"""Tests of several methods on the same episodes, read from the files that `test.py` leaves."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from engine.comparison import MOVED, Difference, EpisodePixels, Pair, difference, mean_iou, moved, wins
from engine.results import EpisodeRow, OneClassResult, SeedMetrics, current_results, read_rows
from engine.support_check import CHANGES
from tools.paper.table import Table
from util.errors import UserError
from util.schema import keys_of

ROUNDING = 1e-6  # by which mIoU computed again may differ
DROPS = ("miou_drop", "hard_miou_drop")  # of all episodes and of hard ones
INTERVALS = "95 % intervals by a bootstrap over query images, the same for both methods, and over trainings"


class Test(NamedTuple):
    """One training's test of the episodes of one fold and seed."""

    result: OneClassResult
    rows: Sequence[EpisodeRow]

    def has_episodes_of(self, other: "Test") -> bool:
        """Whether both were made on the same episodes."""
        return [row.key for row in self.rows] == [row.key for row in other.rows]


Tests = dict[tuple[str, int, int, int], list[Test]]  # by data set, split, shots and seed, one for each training


def read_tests(where: Path) -> Tests:
    """The tests of one method: of a result file, of all that a pattern names, or of all below a folder.

    A warning names results of other weights than lie there now, which do not count. UserError when there is none left,
    when they are of several methods, and as `tests_of`.
    """
    root = Path(where.anchor)
    files = where.rglob("result_test*.json") if where.is_dir() else root.glob(str(where.relative_to(where.anchor)))
    results = list(current_results(files, OneClassResult))
    if not results:
        raise UserError(f"{where}: no result of a test there; name a result_test_*.json or a folder of some")
    methods = [(one.method, [getattr(one.cfg, key) for key in (*keys_of("network"), "ann_type")]) for one in results]
    for result, method in zip(results, methods, strict=True):
        if method != methods[0]:
            other = f"{result.path}: not the method of {results[0].path}"
            raise UserError(f"{other}; name a folder or pattern with one method's results")
    return tests_of(results)


def tests_of(results: Iterable[OneClassResult]) -> Tests:
    """The tests of these results; UserError where episodes are not those of the result or of the fold's other tests."""
    tests: Tests = {}
    for result in results:
        cfg, rows = result.cfg, read_rows(result.episodes_path)
        for metrics in result.results:
            test = Test(result, [row for row in rows if row.seed == metrics.seed])
            check_rows(test, metrics)
            tests.setdefault((cfg.data_set, cfg.split, cfg.shot, metrics.seed), []).append(test)
    for trainings in tests.values():
        check_same(trainings)
    return tests


def check_rows(test: Test, metrics: SeedMetrics) -> None:
    """UserError unless the rows are those of the metrics, with their pixels."""
    path, seed = test.result.episodes_path, metrics.seed
    if lacking := [row.number for row in test.rows if row.intersection is None or row.union is None]:
        raise UserError(f"{path}: no pixels of episode {lacking[0]}; test again")
    found = mean_iou(stacked([test])) if test.rows else None
    if found is None or abs(found - metrics.miou) > ROUNDING:
        reason = "is missing" if found is None else f"has mIoU {100 * found:.2f}, not {100 * metrics.miou:.2f}"
        raise UserError(f"{path}: not the episodes of {test.result.path.name}: seed {seed} {reason}; test again")


def check_same(tests: Sequence[Test]) -> None:
    """UserError unless all tests were made on the same episodes."""
    for test in tests[1:]:
        if not test.has_episodes_of(tests[0]):
            other = f"{test.result.path}: other episodes than {tests[0].result.path}"
            raise UserError(f"{other}; test both with the same seeds and lists")


def comparable(first: Tests, second: Tests) -> bool:
    """Whether two methods have a fold in common, with the same episodes and files of their own."""
    both = [(first[part], second[part]) for part in first if part in second]
    return bool(both) and all(
        a[0].has_episodes_of(b[0]) and not {x.result.path for x in a} & {x.result.path for x in b} for a, b in both
    )


def pair_folds(first: Tests, second: Tests) -> list[list[Pair]]:
    """Two methods on each fold that both were tested on, a pair for each seed; UserError when there is none."""
    folds: dict[tuple[str, int, int], list[Pair]] = {}
    for part, tests in first.items():
        if others := second.get(part):
            check_same([*tests, *others])
            folds.setdefault(part[:3], []).append((stacked(tests), stacked(others)))
    if not folds:
        path, other = (next(iter(tests.values()))[0].result.path for tests in (first, second))
        raise UserError(f"{path} and {other}: no fold, shot and seed in common; test both alike")
    return list(folds.values())


def all_and_hard(first: Tests, second: Tests) -> tuple[list[list[Pair]], list[list[Pair]]]:
    """The pairs of all episodes of each fold, and those of its hard ones."""
    folds = pair_folds(first, second)
    return folds, [[(a.hard_only(), b.hard_only()) for a, b in pairs] for pairs in folds]


def leads(methods: Mapping[str, Tests]) -> dict[str, list[Difference | None]]:
    """How far the first method is ahead of each of the others, on all and on hard episodes."""
    (_, reference), *others = methods.items()
    return {name: [difference(some) for some in all_and_hard(reference, tests)] for name, tests in others}


def stacked(tests: Sequence[Test]) -> EpisodePixels:
    """Several trainings on the same episodes as one."""
    classes, hard, images = zip(*((row.class_id, row.hard, row.query) for row in tests[0].rows), strict=True)
    pixels = [
        [(row.intersection[1], row.union[1]) for row in test.rows if row.intersection and row.union] for test in tests
    ]
    return EpisodePixels(np.array(classes), np.array(hard), np.array(pixels), np.array(images))


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
        cells = [str(sum(len(trainings) for part, trainings in tests.items() if part in reference))]
        for some in all_and_hard(reference, tests):
            own = [mean_iou(tested) for pairs in some for _, tested in pairs if len(tested.classes)]
            found = difference(some) if tests is not reference else None
            cells += [f"{100 * fmean(own):.1f}" if own else "-", found.text() if found else "-"]
        cells += [change_text(tests, change, drop) for change, drop in product(CHANGES, DROPS)]
        rows.append((name, *cells))
    parts = []
    for (data, split, shot, seed), (test, *_) in reference.items():
        images = len({row.query for row in test.rows})
        parts.append(f"{data} {split} ({shot} shot, seed {seed}: {len(test.rows)} episodes, {images} query images)")
    notes = [f"Means over {', '.join(parts)}; {INTERVALS}.", "Last columns: what the wrong support does to mIoU."]
    return Table(title, columns, rows, notes)


def change_text(tests: Tests, change: str, drop: str) -> str:
    """How mIoU changes with wrong supports, a mean over tests, in points."""
    checks = [test.result.support_check.get(change) for test in chain(*tests.values())]
    found = [value.mean for check in checks if check and (value := getattr(check, drop))]
    return f"{0.0 - 100 * fmean(found):+.1f}" if found else "-"


def wins_table(names: tuple[str, str], first: Tests, second: Tests) -> Table:
    """In how many episodes of each class the first method is better, equal and worse."""
    columns = ("fold", "class", "better", "equal", "worse")
    table, pairs = Table(f"{names[0]} against {names[1]}, episodes by class", columns), []
    for part in (part for part in first if part in second):
        pairs.append((stacked(first[part]), stacked(second[part])))
        classes = first[part][0].result.classes
        table.rows += [(f"{part[0]} {part[1]}", classes[c], *map(str, counts)) for c, counts in wins(pairs[-1]).items()]
    table.notes.append("Equal: IoUs, means over trainings, no more than a point apart.")
    table.notes.append(f"Of all episodes, {moved(pairs):.1%} have IoUs more than {MOVED} apart.")
    return table

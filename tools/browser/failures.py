"""The page Failures: the episodes of a test by IoU, of two tests by difference, and what an episode looks like."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.benchmarks.table import test_config
from dataset.episode import Episode
from dataset.index import ImageMaskStore, load_index
from engine.evaluation import EpisodeSet, Outcome, run_episodes
from model.inference import load_network
from model.methods.method import Method
from util.config import Config, restore_config
from util.distributed import ProcessGroup, pick_device
from util.errors import UserError
from util.image import RGB
from util.visualize import episode_panel

ENDING = ".episodes.jsonl"
HEADERS = ("IoU", "class", "shot", "seed", "number", "query", "supports")
HEADERS_OF_TWO = ("difference", "first", "second", *HEADERS[1:])
CHANGED = 0.01  # of IoU, above which an episode drawn again is not the one that was tested

Row = dict[str, Any]  # a line of a test's episodes, and `result`, the file that it stands in
Pair = tuple[Row, Row | None]  # the same episode in the first and, if there is one, the second result


def find_results(root: Path) -> dict[str, list[Path]]:
    """By name, the episodes of every test below a folder; and of all tests of a run, where it has several."""
    files = sorted(root.rglob(f"*{ENDING}"))
    found = {str(file.relative_to(root)).removesuffix(ENDING): [file] for file in files}
    for folder in dict.fromkeys(file.parent for file in files):
        inside = [file for file in files if file.parent == folder]
        if len(inside) > 1:
            found[f"{folder.relative_to(root)} (all)"] = inside
    return found


def read_rows(files: Sequence[Path]) -> list[Row]:
    """The lines of some files; UserError names one that is damaged."""
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                row = {**json.loads(line), "result": file}
                rows.append({**row, "key": (row["query"], row["class_id"], tuple(row["support"])), "iou": row["iou"]})
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}:{number}: not an episode of a test ({error}); test again") from None
    return rows


def pair_rows(first: Sequence[Row], second: Sequence[Row] | None) -> list[Pair]:
    """All of the first result's episodes; with a second result those that are in both. UserError if none is."""
    if second is None:
        return [(row, None) for row in first]
    there = {row["key"]: row for row in second}
    pairs: list[Pair] = [(row, there[row["key"]]) for row in first if row["key"] in there]
    if not pairs:
        raise UserError("the two results have no episode in common; test both with the same seed or episodes_file")
    return pairs


def sort_pairs(pairs: Sequence[Pair], class_name: str | None, shot: int | None, descending: bool = False) -> list[Pair]:
    """Those of a class and a shot (None: any) by IoU, of two results by the first's less the second's.

    Episodes without a pixel to judge come last.
    """
    chosen = [
        pair for pair in pairs if class_name in (None, pair[0]["class"]) and shot in (None, len(pair[0]["support"]))
    ]
    return sorted(chosen, key=lambda pair: (figure(pair) is None, (figure(pair) or 0) * (-1 if descending else 1)))


def choices(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """The classes and the shots that come up."""
    shots = sorted({len(row["support"]) for row, _ in pairs})
    return sorted({row["class"] for row, _ in pairs}), [str(number) for number in shots]


def figure(pair: Pair) -> float | None:
    """What a pair is sorted by."""
    first, second = pair
    if second is None or first["iou"] is None or second["iou"] is None:
        return None if second else first["iou"]
    return float(first["iou"] - second["iou"])


def table(pairs: Sequence[Pair]) -> list[list[Any]]:
    """A row of cells for every pair, under HEADERS or HEADERS_OF_TWO."""
    rows = []
    for first, second in pairs:
        numbers = [figure((first, second)), *([] if second is None else [first["iou"], second["iou"]])]
        about = [first["class"], len(first["support"]), first["seed"], first["number"], first["query"]]
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        rows.append([*cells, *about, ", ".join(first["support"])])
    return rows


@dataclass
class LoadedTest:
    """What a test's result says of how it was made, with the network in memory."""

    cfg: Config
    files: ImageMaskStore
    classes: list[int]
    model: Method

    def run(self, row: Row) -> Outcome:
        """One of its episodes again."""
        episode = Episode(row["query"], row["class_id"], row["support"])
        if missing := [name for name in (row["query"], *row["support"]) if name not in self.files]:
            raise UserError(f"{missing[0]}: is no longer among the images that this test draws from")
        outcomes: list[Outcome] = []
        episodes = EpisodeSet([episode], self.files, self.classes)
        process_group = ProcessGroup(next(self.model.parameters()).device)
        run_episodes(self.model, self.cfg, episodes, process_group, observe=outcomes.append, progress=False)
        return outcomes[0]


def load_test(episodes: Path) -> LoadedTest:
    """The network and data of a result; UserError where result, weights or data are gone."""
    path = episodes.with_name(episodes.name.removesuffix(ENDING) + ".json")
    try:
        content = json.loads(path.read_text())
        cfg, weights = restore_config(content["config"]), content["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no readable result of a test; test again") from None
    if cfg is None:
        raise UserError(f"{path}: its config is not one of this version; test again")
    cfg = cfg.model_copy(update={"loader_workers": 0})
    index, files = load_index(test_config(cfg), "test")
    model = load_network(cfg, Path(weights) if weights else None, pick_device(cfg.device))
    return LoadedTest(cfg, files, sorted(index.by_class), model)


def draw_pair(tests: dict[Path, LoadedTest], pair: Pair) -> tuple[RGB, str]:
    """An episode's panel with the prediction of either result, and what is to be said about it.

    `tests` keeps the two latest networks.
    """
    predictions: dict[str, tuple[Any, float | None]] = {}
    remarks = []
    outcome = None
    for row in (row for row in pair if row):
        file = row["result"]
        tests[file] = test = tests.pop(file, None) or load_test(file)
        while len(tests) > 2:
            tests.pop(next(iter(tests)))
        outcome = test.run(row)
        name = file.name.removesuffix(ENDING)
        name = name if name not in predictions else str(file.parent / name)
        predictions[name] = outcome.prediction.cpu().numpy(), outcome.iou
        if abs((outcome.iou or 0) - (row["iou"] or 0)) > CHANGED:
            before = "no IoU" if row["iou"] is None else f"IoU {row['iou']:.3f}"
            remarks.append(f"{name}: {before} when it was tested; weights or data have changed since.")
    assert outcome
    return episode_panel(*outcome.images(test.files), predictions, pair[0]["class"]), " ".join(remarks)

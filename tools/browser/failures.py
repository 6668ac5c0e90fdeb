"""The page Failures: the episodes of a test by IoU, of two tests by difference, and what an episode looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dataset.benchmarks.table import test_config
from dataset.episode import Episode
from dataset.index import ImageMaskStore, load_index
from engine.evaluation import EpisodeSet, Outcome, run_episodes
from engine.results import EPISODES, EpisodeRow, OneClassResult, read_result, read_rows
from model.inference import load_network
from model.methods.method import Method
from util.config import Config
from util.distributed import ProcessGroup, pick_device
from util.errors import UserError
from util.image import RGB
from util.visualize import episode_panel

ENDING = EPISODES
HEADERS = ("IoU", "class", "shot", "seed", "number", "query", "supports")
HEADERS_OF_TWO = ("difference", "first", "second", *HEADERS[1:])
CHANGED = 0.01  # of IoU, above which an episode drawn again is not the one that was tested


class TestedEpisode(NamedTuple):
    """A line of a test's episodes, and the file in which it stands."""

    file: Path
    row: EpisodeRow

    @property
    def key(self) -> tuple[str, int, tuple[str, ...]]:
        """What tells an episode from others."""
        return self.row.query, self.row.class_id, tuple(self.row.support)


Pair = tuple[TestedEpisode, TestedEpisode | None]  # one episode in the first and, if there is one, the second result


def find_results(root: Path) -> dict[str, list[Path]]:
    """By name, the episodes of every test below a folder; and of all tests of a run, where it has several."""
    files = sorted(root.rglob(f"*{ENDING}"))
    found = {str(file.relative_to(root)).removesuffix(ENDING): [file] for file in files}
    for folder in dict.fromkeys(file.parent for file in files):
        inside = [file for file in files if file.parent == folder]
        if len(inside) > 1:
            found[f"{folder.relative_to(root)} (all)"] = inside
    return found


def read_files(files: Sequence[Path]) -> list[TestedEpisode]:
    """The episodes of some files; UserError names one that is damaged."""
    return [TestedEpisode(file, row) for file in files for row in read_rows(file)]


def pair_rows(first: Sequence[TestedEpisode], second: Sequence[TestedEpisode] | None) -> list[Pair]:
    """All of the first result's episodes; with a second result those that are in both. UserError if none is."""
    if second is None:
        return [(episode, None) for episode in first]
    there = {episode.key: episode for episode in second}
    pairs: list[Pair] = [(episode, there[episode.key]) for episode in first if episode.key in there]
    if not pairs:
        raise UserError("the two results have no episode in common; test both with the same seed or episodes_file")
    return pairs


def sort_pairs(pairs: Sequence[Pair], class_name: str | None, shot: int | None, descending: bool = False) -> list[Pair]:
    """Those of a class and a shot (None: any) by IoU, of two results by the first's less the second's.

    Episodes without a pixel to judge come last.
    """
    rows = [(pair, pair[0].row) for pair in pairs]
    chosen = [p for p, row in rows if class_name in (None, row.class_name) and shot in (None, len(row.support))]
    return sorted(chosen, key=lambda pair: (order(pair) is None, (order(pair) or 0) * (-1 if descending else 1)))


def choices(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """The classes and the shots that come up."""
    shots = sorted({len(first.row.support) for first, _ in pairs})
    return sorted({first.row.class_name for first, _ in pairs}), [str(number) for number in shots]


def order(pair: Pair) -> float | None:
    """What a pair is sorted by: its IoU, or the difference of two."""
    first, second = (episode.row.iou if episode else None for episode in pair)
    if pair[1] is None:
        return first
    return None if first is None or second is None else first - second


def table(pairs: Sequence[Pair]) -> list[list[Any]]:
    """A row of cells for every pair, under HEADERS or HEADERS_OF_TWO."""
    rows = []
    for first, second in pairs:
        row = first.row
        numbers = [order((first, second)), *([] if second is None else [row.iou, second.row.iou])]
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        about = [row.class_name, len(row.support), row.seed, row.number, row.query]
        rows.append([*cells, *about, ", ".join(row.support)])
    return rows


@dataclass
class LoadedTest:
    """What a test's result says of how it was made, with the network in memory."""

    cfg: Config
    files: ImageMaskStore
    classes: list[int]
    model: Method

    def run(self, row: EpisodeRow) -> Outcome:
        """One of its episodes again."""
        episode = Episode(row.query, row.class_id, row.support)
        if missing := [name for name in (row.query, *row.support) if name not in self.files]:
            raise UserError(f"{missing[0]}: is no longer among the images that this test draws from")
        outcomes: list[Outcome] = []
        episodes = EpisodeSet([episode], self.files, self.classes)
        process_group = ProcessGroup(next(self.model.parameters()).device)
        run_episodes(self.model, self.cfg, episodes, process_group, observe=outcomes.append, progress=False)
        return outcomes[0]


def load_test(episodes: Path) -> LoadedTest:
    """The network and data of a result; UserError where result, weights or data are gone."""
    result = read_result(episodes.with_name(episodes.name.removesuffix(ENDING) + ".json"), OneClassResult)
    cfg = result.cfg.model_copy(update={"loader_workers": 0})
    index, files = load_index(test_config(cfg), "test")
    model = load_network(cfg, Path(result.weights) if result.weights else None, pick_device(cfg.device))
    return LoadedTest(cfg, files, sorted(index.by_class), model)


def draw_pair(tests: dict[Path, LoadedTest], pair: Pair) -> tuple[RGB, str]:
    """An episode's panel with the prediction of either result, and what is to be said about it.

    `tests` keeps the two latest networks.
    """
    predictions: dict[str, tuple[Any, float | None]] = {}
    remarks = []
    outcome = None
    for file, row in (episode for episode in pair if episode):
        tests[file] = test = tests.pop(file, None) or load_test(file)
        while len(tests) > 2:
            tests.pop(next(iter(tests)))
        outcome = test.run(row)
        name = file.name.removesuffix(ENDING)
        name = name if name not in predictions else str(file.parent / name)
        predictions[name] = outcome.prediction.cpu().numpy(), outcome.iou
        if abs((outcome.iou or 0) - (row.iou or 0)) > CHANGED:
            before = "no IoU" if row.iou is None else f"IoU {row.iou:.3f}"
            remarks.append(f"{name}: {before} when it was tested; weights or data have changed since.")
    assert outcome
    return episode_panel(*outcome.images(test.files), predictions, pair[0].row.class_name), " ".join(remarks)

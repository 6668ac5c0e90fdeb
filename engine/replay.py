"""The episodes of a test by IoU, of two tests by difference, and any of them run again and drawn."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

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

HEADERS = ("class", "shot", "seed", "number", "query", "supports")
CHANGED = 0.01  # of IoU, above which an episode run again is not the one that was tested

Tested = list[tuple[Path, EpisodeRow]]  # one episode's lines in one result or two, and the files in which they stand


def find_tests(root: Path) -> dict[str, Path]:
    """By name, the episodes of every test below a folder."""
    return {str(file.relative_to(root)).removesuffix(EPISODES): file for file in sorted(root.rglob(f"*{EPISODES}"))}


def read_tested(first: Sequence[Path], second: Sequence[Path]) -> list[Tested]:
    """The episodes of some files; with second files those that are in both. UserError if none is, or one is damaged."""
    found: list[Tested] = [[(file, row)] for file in first for row in read_rows(file)]
    if not second:
        return found
    there = {row.key: (file, row) for file in second for row in read_rows(file)}
    both = [[(file, row), there[row.key]] for ((file, row),) in found if row.key in there]
    if not both:
        raise UserError("the two results have no episode in common; test both with the same seed or episodes_file")
    return both


def rows_by_iou(episodes: Sequence[Tested]) -> list[tuple[list[Any], Tested]]:
    """Every episode with its row of a table: IoU, of two results the first's less the second's and both, and HEADERS.

    The lowest come first, episodes without a pixel to judge last, with None for their IoU.
    """
    rows: list[tuple[list[Any], Tested]] = []
    for tested in episodes:
        row, ious = tested[0][1], np.array([row.iou for _, row in tested], float)  # nan for None
        numbers = [*(ious[:1] - ious[1:]), *ious]
        cells = [None if np.isnan(number) else round(float(number), 3) for number in numbers]
        about = [row.class_name, len(row.support), row.seed, row.number, row.query, ", ".join(row.support)]
        rows.append(([*cells, *about], tested))
    return sorted(rows, key=lambda row: (row[0][0] is None, row[0][0]))


@lru_cache(2)  # networks in memory
def load_test(episodes: Path) -> tuple[Config, ImageMaskStore, list[int], Method]:
    """A result's config, images, classes and network; UserError where result, weights or data are gone."""
    result = read_result(episodes.with_name(episodes.name.removesuffix(EPISODES) + ".json"), OneClassResult)
    cfg = result.cfg.model_copy(update={"loader_workers": 0})
    index, files = load_index(test_config(cfg), "test")
    model = load_network(cfg, Path(result.weights) if result.weights else None, pick_device(cfg.device))
    return cfg, files, sorted(index.by_class), model


def run_again(file: Path, row: EpisodeRow) -> tuple[Outcome, ImageMaskStore]:
    """An episode of a result once more, and the images that it is drawn from; UserError where they have changed."""
    cfg, files, classes, model = load_test(file)
    if missing := [name for name in (row.query, *row.support) if name not in files]:
        raise UserError(f"{missing[0]}: is no longer among the images that this test draws from")
    outcomes: list[Outcome] = []
    episodes = EpisodeSet([Episode(row.query, row.class_id, row.support)], files, classes)
    device = next(model.parameters()).device
    run_episodes(model, cfg, episodes, ProcessGroup(device), observe=outcomes.append, progress=False)
    return outcomes[0], files


def draw_episode(tested: Tested) -> tuple[RGB, str]:
    """An episode's panel with the prediction of either result, and what is to be said about it."""
    predictions: dict[str, tuple[Any, float | None]] = {}
    remarks = []
    for name, (file, row) in zip(("first", "second") if len(tested) > 1 else ("prediction",), tested, strict=True):
        outcome, files = run_again(file, row)
        predictions[name] = outcome.prediction.cpu().numpy(), outcome.iou
        was, now = np.array([row.iou, outcome.iou], float)  # nan for None
        if not np.isclose(was, now, rtol=0, atol=CHANGED, equal_nan=True):
            before = "no IoU" if row.iou is None else f"IoU {row.iou:.3f}"
            remarks.append(f"{file.name}: {before} when it was tested; weights or data have changed since.")
    return episode_panel(*outcome.images(files), predictions, tested[0][1].class_name), " ".join(remarks)

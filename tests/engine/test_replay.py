from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import replay
from engine.evaluation import make_episodes, run_episodes
from engine.results import EPISODES, EpisodeRow, SeedMetrics, episode_rows
from model.build import build_model
from model.released import load_weights
from tests.toy import write_experiment
from tests.written import write_test
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError


def write_result(path: Path, cfg: Config, weights: Path) -> list[float | None]:
    """Test as test.py does; returns the IoU of every episode."""
    model = build_model(cfg, pretrained=False)
    load_weights(model, weights)
    episodes = make_episodes(cfg, 3, 7)
    metrics = run_episodes(model, cfg, episodes, ProcessGroup(torch.device("cpu")), progress=False)
    names = {number: f"thing{number}" for number in range(1, 9)}
    write_test(cfg, SeedMetrics(seed=3, **dict(metrics)), path=path, weights=str(weights))
    write_rows(path.with_suffix(EPISODES), episode_rows(3, episodes.episodes, metrics, names))
    return metrics.episode_iou


def row(number: int, iou: float | None, class_name: str = "cat", shot: int = 1, **more: Any) -> EpisodeRow:
    about = {"class": class_name, "query": f"q{number}", "class_id": 1, "support": ["s"] * shot}
    return EpisodeRow(**{"seed": 0, "number": number, "iou": iou, **about, **more})


def write_rows(path: Path, rows: Sequence[EpisodeRow]) -> list[Path]:
    path.write_text("".join(line.model_dump_json(by_alias=True) + "\n" for line in rows))
    return [path]


def test_results_that_there_are(tmp_path: Path) -> None:
    for name in ("a/result_test_1shot", "a/result_test_5shot", "b/result_test_1shot"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_rows(tmp_path / f"{name}.episodes.jsonl", [])
    found = replay.find_tests(tmp_path)
    assert list(found) == ["a/result_test_1shot", "a/result_test_5shot", "b/result_test_1shot"]
    assert found["a/result_test_5shot"].is_relative_to(tmp_path / "a")


def test_sorted_by_iou_and_what_has_none_comes_last(tmp_path: Path) -> None:
    lines = [row(0, 0.5), row(1, None), row(2, 0.1, "dog"), row(3, 0.9, shot=5), row(4, 0.3)]
    rows = replay.rows_by_iou(replay.read_tested(write_rows(tmp_path / "x.episodes.jsonl", lines), []))
    assert [tested[0][1].number for _, tested in rows] == [2, 4, 0, 3, 1]
    assert rows[0][0] == [0.1, "dog", 1, 0, 2, "q2", "s"] and rows[-1][0][0] is None


def test_two_results_are_paired_by_episode_and_sorted_by_difference(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "x.episodes.jsonl", [row(0, 0.5), row(1, 0.4), row(2, 0.9)])
    other = [row(8, 0.9, query="q1"), row(9, 0.2, query="q2"), row(5, 0.5)]
    rows = replay.rows_by_iou(replay.read_tested(first, write_rows(tmp_path / "y.episodes.jsonl", other)))
    assert [cells[:3] for cells, _ in rows] == [[-0.5, 0.4, 0.9], [0.7, 0.9, 0.2]]
    with pytest.raises(UserError, match="no episode in common"):
        replay.read_tested(first, write_rows(tmp_path / "w.episodes.jsonl", [row(5, 0.5)]))
    (tmp_path / "z.episodes.jsonl").write_text('{"seed": 1}\n')
    with pytest.raises(UserError, match=r"z\.episodes\.jsonl:1: not an episode"):
        replay.read_tested([tmp_path / "z.episodes.jsonl"], [])


def test_episodes_are_drawn_again_with_the_same_figures(tmp_path: Path) -> None:
    cfg, weights = write_experiment(tmp_path / "experiment")
    ious = write_result(tmp_path / "result.json", cfg, weights)
    rows = replay.read_tested([tmp_path / "result.episodes.jsonl"], [])
    for number in (0, 4):
        panel, remark = replay.draw_episode(rows[number])
        assert panel.ndim == 3 and panel.shape[1] > 3 * panel.shape[0] / 2 and remark == ""
        outcome = replay.run_again(*rows[number][0])[0]
        assert outcome.iou == pytest.approx(ious[number], abs=replay.CHANGED)
    ((file, first),) = rows[0]
    changed, none = ((file, first.model_copy(update={"iou": iou})) for iou in ((ious[0] or 0) + 0.5, None))
    wider = replay.draw_episode([*rows[0], changed])
    assert "weights or data have changed since" in wider[1] and np.isfinite(wider[0]).all()
    told = "no IoU when it was tested" in replay.draw_episode([none])[1]
    assert told == (ious[0] is not None)  # random weights may mark nothing of a truth that has nothing
    (tmp_path / "result.json").unlink()
    replay.load_test.cache_clear()
    with pytest.raises(UserError, match=r"result\.json: No such file"):
        replay.draw_episode(rows[0])

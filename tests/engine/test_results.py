"""What is written is read again, also from former versions; what cannot be read is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.results import (
    EPISODES,
    OneClassResult,
    SeveralClassesResult,
    TrainingResult,
    current_results,
    read_result,
    read_rows,
    write_result,
)
from tests.toy import generator, toy_config
from tests.written import episode_row, seed_metrics, write_test
from util.errors import UserError


def former(path: Path, **more: Any) -> Path:
    """A test as the first version wrote it."""
    row: dict[str, Any] = {"seed": 321, "miou": 0.5, "fb_iou": 0.7, "piou": 0.5, "class_iou": {"1": 0.5, "2": None}}
    row |= {"class_episodes": {"1": 2, "2": 0}, "mean_episode_iou": 0.4, "interval": [0.3, 0.5]}
    row |= {"episode_iou": [0.4, None], "seconds": 2.0, "seconds_per_episode": 0.9}
    content: dict[str, Any] = {"kind": "test", "method": "hmnet", "config": toy_config(path.parent).model_dump()}
    content |= {
        "classes": {"1": "cat", "2": "dog"},
        "results": [row],
        "aggregate": {"miou": {"mean": 0.5, "std": None}},
    }
    path.write_text(json.dumps({**content, **more}))
    return path


def test_results_of_former_versions_are_read(tmp_path: Path) -> None:
    result = read_result(former(tmp_path / "result_test_1shot.json"), OneClassResult)
    assert (result.method, result.cfg.data_set, result.classes) == ("HMNet", "toy", {1: "cat", 2: "dog"})
    assert result.results[0].interval == (0.3, 0.5) and result.results[0].query_images is None
    drop = {"fall": {"mean": 0.1, "low": 0.0, "high": 0.2}, "hard_fall": None, "results": []}
    later = former(
        tmp_path / "result_test_5shot.json", method="prior", support_check={"empty_mask": drop}, left_out=["a"]
    )
    result = read_result(later, OneClassResult)
    assert result.method == "prior" and result.support_check["empty_mask"].miou_drop.mean == 0.1
    ways = {"kind": "ways", "ways": 2, "metric_size": "input", "method": "hmnet", "config": result.config}
    ways |= {"runs": [{"seed": 5, "class_iou": {"1": 0.5}, "miou": 0.5, "miou_everywhere": 0.4}], "aggregate": {}}
    (tmp_path / "result_ways.json").write_text(json.dumps(ways))
    assert read_result(tmp_path / "result_ways.json", SeveralClassesResult).runs[0].miou == 0.5
    line = {"seed": 1, "number": 0, "class": "cat", "query": "a", "class_id": 1, "support": ["b"], "iou": None}
    (tmp_path / "x.episodes.jsonl").write_text(json.dumps(line) + "\n")
    assert read_rows(tmp_path / "x.episodes.jsonl")[0].class_name == "cat"
    found = current_results(tmp_path.glob("result*.json"), OneClassResult)
    assert [result.path.name for result in found] == ["result_test_1shot.json", "result_test_5shot.json"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    right = generator().integers(1, 100, 12).tolist()
    rows = [episode_row(number, count) for number, count in enumerate(right)]
    miou = float(np.mean([np.mean(right[start::2]) for start in (0, 1)])) / 100
    path = write_test(toy_config(tmp_path), seed_metrics(5, miou), path=tmp_path / "result_test_1shot.json")
    result = read_result(path, OneClassResult)
    write_result(result, rows)
    assert read_result(path, OneClassResult) == result and result.episodes_path.name == f"result_test_1shot{EPISODES}"
    assert read_rows(result.episodes_path) == rows
    training = TrainingResult(path=tmp_path / "result.json", kind="training", miou=0.5, validations=[{"epoch": 1.5}])
    write_result(training)
    assert read_result(training.path, TrainingResult) == training


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"news": 1}, "unknown key 'news'"),
        ({"aggregate": {"miou": {"mean": 1, "median": 2}}}, "unknown key 'aggregate.miou.median'"),
        ({"results": [{"seed": 1}]}, "'results.0.miou' is missing"),
        ({"results": []}, "results: List should have at least 1 item"),
        ({"kind": "table"}, "not a result .its kind is 'table'."),
        ({"config": {"data_set": "toy", "colour": 1}}, "config: unknown key 'colour'"),
        ({"config": {"data_set": "toy", "split": "x"}}, "config: values that this version does not take"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    path = former(tmp_path / "result_test_1shot.json", **more)
    with pytest.raises(UserError, match=rf"^\S*result_test_1shot.json: {message}[^\n]*$"):
        assert read_result(path, OneClassResult).cfg


def test_a_line_that_is_no_episode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.episodes.jsonl"
    path.write_text(episode_row(0, 5).model_dump_json(by_alias=True) + '\n{"seed": 1}\n')
    with pytest.raises(UserError, match=r"x.episodes.jsonl:2: not an episode of a test \('number' is missing\)"):
        read_rows(path)

import json
from pathlib import Path
from typing import Any

import pytest

from tools.paper.history import Bars, as_rows, read_bars, read_course, short_names
from util.errors import UserError

LOG = """2026-01-02 03:04:05 INFO epoch 1/3 step 4/4 loss 0.9000 (0.5000 + 0.4000), 1.00 items/s, 00:01:00 left
2026-01-02 03:04:05 INFO epoch 1 mean loss 0.8000 foreground IoU 0.2500
2026-01-02 03:05:05 INFO epoch 2 mean loss 0.7000 foreground IoU 0.3000
2026-01-02 03:05:06 INFO epoch 2 validation miou 0.4000 fb_iou 0.6000 piou 0.4000
2026-01-02 03:06:05 INFO resumed from somewhere: epoch 2, step 0
2026-01-02 03:07:05 INFO epoch 2 mean loss 1e-05 foreground IoU 0.3500
"""


def write_training(folder: Path, tag: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    validations = [{"epoch": 1.5, "miou": 0.3, "fb_iou": 0.5, "piou": 0.3}, {"epoch": 2, "miou": 0.4, "fb_iou": 0.6}]
    content = {"kind": "training", "finished": True, "miou": 0.4, "validations": validations}
    (folder / f"result{tag}.json").write_text(json.dumps(content))
    (folder / f"log{tag}.txt").write_text(LOG)
    return folder


def result(seed: int, ious: list[float | None], **more: Any) -> dict[str, Any]:
    figures = {"miou": 0.5, "fb_iou": 0.7, "mean_episode_iou": 0.45, "interval": [0.4, 0.5]}
    return {"seed": seed, "class_iou": {str(c): iou for c, iou in enumerate(ious, 3)}, **figures, **more}


def write_test(path: Path, *results: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = {str(c): name for c, name in enumerate("abcdef")}
    path.write_text(json.dumps({"kind": "test", "classes": classes, "results": results}))
    return path


def test_a_course_from_result_and_log(tmp_path: Path) -> None:
    course = read_course(write_training(tmp_path))
    assert course.loss == {1: 0.8, 2: 1e-5}
    assert course.hits == {1: 0.25, 2: 0.35}
    assert course.hits_of == "foreground IoU"
    assert [row["miou"] for row in course.validations] == [0.3, 0.4]
    write_training(tmp_path / "more", "_train5")
    assert read_course(tmp_path / "more/result_train5.json").loss == course.loss


def test_a_course_that_has_only_begun(tmp_path: Path) -> None:
    (write_training(tmp_path) / "result.json").unlink()
    course = read_course(tmp_path)
    assert (len(course.loss), course.validations) == (2, [])


def test_what_is_no_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training here"):
        read_course(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not the result of a training"):
        read_course(write_test(tmp_path / "result_test_1shot.json", result(1, [0.5])))
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=f"{tmp_path}/result.json: not a readable JSON file"):
        read_course(tmp_path)


def test_bars_of_one_seed_have_the_interval_of_the_episodes(tmp_path: Path) -> None:
    bars = read_bars(write_test(tmp_path / "r.json", result(321, [0.25, None])))
    assert bars.values == {"d": 25, "e": None, "mIoU": 50, "FB-IoU": 70, "mean of episodes": 45}
    assert (bars.low, bars.high) == ({"mean of episodes": 40}, {"mean of episodes": 50})


def test_bars_of_several_seeds_have_their_deviation(tmp_path: Path) -> None:
    seeds = result(0, [0.2, None]), result(1, [0.4, 0.6], miou=0.6), result(2, [0.6, None])
    bars = read_bars(write_test(tmp_path / "r.json", *seeds))
    assert bars.values["d"] == pytest.approx(40)
    assert (bars.low["d"], bars.high["d"]) == (pytest.approx(20), pytest.approx(60))  # the deviation of 20, 40, 60
    assert bars.values["e"] == 60 and "e" not in bars.low  # drawn with one seed only
    assert bars.values["mIoU"] == pytest.approx(160 / 3)


def test_what_is_no_test(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; give a result_test"):
        read_bars(tmp_path / "r.json")
    with pytest.raises(UserError, match="its kind is 'training'"):
        read_bars(write_training(tmp_path) / "result.json")


def test_names_are_what_differs() -> None:
    folders = [Path("/exp/a/toy/HMNet/split0"), Path("/exp/b/c/toy/HMNet/split0")]
    assert short_names(folders) == ["a", "b/c"]
    assert short_names([Path("/exp/split0/vgg/result.json")]) == ["vgg"]
    assert short_names([Path("/exp/toy"), Path("/exp/toy/deeper")]) == [".", "deeper"]
    assert short_names([Path("/exp/toy/r1.json"), Path("/exp/toy/r5.json")]) == ["r1.json", "r5.json"]


def test_rows_of_a_file_of_numbers() -> None:
    rows = as_rows([Bars(Path("r"), {"cat": 10.0, "dog": None}, {"cat": 9.0}, {"cat": 12.0})], ["run"])
    assert rows[0] == {"run": "run", "class": "cat", "iou": 10.0, "low": 9.0, "high": 12.0}
    assert rows[1] == {"run": "run", "class": "dog", "iou": None, "low": None, "high": None}

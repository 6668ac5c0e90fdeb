import json
from pathlib import Path
from typing import Any

import pytest

from engine.results import SeedMetrics
from tests.toy import ROOT
from tests.written import seed_metrics, write_test
from tools.paper.history import Bar, read_bars, read_course, short_names
from util.config import load_config
from util.errors import UserError

CONFIG = load_config(ROOT / "config/base/pascal.yaml")

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


def result(seed: int, ious: list[float | None], **more: Any) -> SeedMetrics:
    about = {"mean_episode_iou": 0.45, "interval": (0.4, 0.5), "class_iou": dict(enumerate(ious, 3))}
    return seed_metrics(seed, **{"miou": 0.5, "fb_iou": 0.7, **about, **more})


def write(path: Path, *results: SeedMetrics) -> Path:
    return write_test(CONFIG, *results, path=path, classes=dict(enumerate("abcdef")))


def test_a_course_from_result_and_log(tmp_path: Path) -> None:
    course = read_course(write_training(tmp_path))
    assert course.loss == {1: 0.8, 2: 1e-5}
    assert course.train_accuracy == {1: 0.25, 2: 0.35}
    assert course.measure == "foreground IoU"
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
        read_course(write(tmp_path / "result_test_1shot.json", result(1, [0.5])))
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=f"{tmp_path}/result.json: Invalid JSON"):
        read_course(tmp_path)


def test_bars_of_one_seed_have_the_interval_of_the_query_images(tmp_path: Path) -> None:
    bars = read_bars(write(tmp_path / "r.json", result(321, [0.25, None])))
    assert bars.pop("mean of episodes") == pytest.approx((45, 40, 50))
    assert bars == {"d": Bar(25), "e": Bar(None), "mIoU": Bar(50), "FB-IoU": Bar(70)}


def test_bars_of_several_seeds_have_their_deviation(tmp_path: Path) -> None:
    seeds = result(0, [0.2, None]), result(1, [0.4, 0.6], miou=0.6), result(2, [0.6, None])
    bars = read_bars(write(tmp_path / "r.json", *seeds))
    assert bars["d"] == pytest.approx((40, 20, 60))  # the deviation of 20, 40, 60
    assert bars["e"] == Bar(60)  # drawn with one seed only
    assert bars["mIoU"].iou == pytest.approx(160 / 3)


def test_what_is_no_test(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; give a result"):
        read_bars(tmp_path / "r.json")
    with pytest.raises(UserError, match="its kind is 'training'"):
        read_bars(write_training(tmp_path) / "result.json")


def test_names_are_what_differs() -> None:
    folders = [Path("/exp/a/toy/HMNet/split0"), Path("/exp/b/c/toy/HMNet/split0")]
    assert short_names(folders) == ["a", "b/c"]
    assert short_names([Path("/exp/split0/vgg/result.json")]) == ["vgg"]
    assert short_names([Path("/exp/toy"), Path("/exp/toy/deeper")]) == [".", "deeper"]
    assert short_names([Path("/exp/toy/r1.json"), Path("/exp/toy/r5.json")]) == ["r1.json", "r5.json"]

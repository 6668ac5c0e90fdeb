"""Supports that are segmented by the others, by a method whose answers are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from prediction.expectation import (
    THRESHOLDS,
    Trial,
    better,
    disagreeing,
    expect,
    interval_of,
    iou,
    leave_out,
    write_curve,
)
from prediction.predictor import Prediction
from prediction.support import SupportClass
from util.pixels import IGNORE


class Bright:
    """Takes a class of the supports shown last for what is as bright as they say; the probability is the brightness."""

    size, model = 40, None

    def __init__(self) -> None:
        self.sets: list[dict[str, Any]] = []

    def set_support(self, classes: dict[str, Any]) -> None:
        self.sets.append(classes)

    def predict(self, image: np.ndarray) -> Prediction:
        probability = np.asarray(image[..., 0] / 255, np.float32)
        return Prediction(tuple(self.sets[-1]), (probability > 0.5).astype(np.uint8), probability[None])


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> Bright:
    monkeypatch.setattr("prediction.expectation.FeatureCache", lambda *_: None)
    return Bright()


def supports(folder: Path, count: int, levels: list[int]) -> SupportClass:
    """Images whose left half is the object, each of its own brightness."""
    images, masks = [], []
    for number in range(count):
        image = np.zeros((20, 30, 3), np.uint8)
        image[:, :15] = levels[number]
        images.append(folder / f"{number}.png")
        Image.fromarray(image).save(images[-1])
        masks.append((image[..., 0] > 0).astype(np.uint8))
    return SupportClass("thing", 1, images, masks)


def test_every_support_is_segmented_by_the_others_alone(bright: Bright, tmp_path: Path) -> None:
    support = supports(tmp_path, 8, [100, 200] * 4)  # at 0.5 one half is found, at 0.35 all
    trials = leave_out(bright, [support])  # type: ignore[arg-type]
    assert sorted(trial.image for trial in trials) == support.images
    held = iter(trials)
    for classes in bright.sets:
        left = {next(held).image for _ in range(8 - len(classes["thing"][0]))}
        assert left and not left & {*classes["thing"][0]}
    expected = expect(trials)
    assert expected.iou == 1 and expected.threshold == THRESHOLDS[0]
    assert expect(trials, 0.5).iou == 0.5 and expect(trials, 0.5).threshold == 0.5
    alone = SupportClass("thing", 1, support.images[:1], support.masks[:1])
    assert leave_out(bright, [alone]) == []  # type: ignore[arg-type]


def test_a_threshold_of_ones_own_is_the_one_that_is_measured(bright: Bright, tmp_path: Path) -> None:
    support = supports(tmp_path, 6, [50, 200] * 3)  # the dark half is found below 0.2 alone
    for asked, iou_there in ((0.1, 1), (0.3, 0.5), (0.9, 0)):
        expected = expect(leave_out(bright, [support], asked), asked)  # type: ignore[arg-type]
        assert (expected.threshold, expected.iou) == (asked, iou_there)
    write_curve(tmp_path, bright, [support], 0.1)  # type: ignore[arg-type]
    assert {point["iou"] for point in json.loads((tmp_path / "curve.json").read_text())} == {1}


def test_the_interval_is_students() -> None:
    values = np.array([0.5, 0.6, 0.8, 0.55])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert interval_of(values) == pytest.approx((low, high), abs=1e-4)
    assert interval_of(values[:1]) == (0, 1)


def test_the_iou_without_ignored_pixels() -> None:
    mask, truth = np.array([[1, 1, 1, 0]], bool), np.array([[1, 0, IGNORE, 1]], np.uint8)
    assert iou(mask, truth) == pytest.approx(1 / 3)
    assert iou(mask[:, 3:], truth[:, 1:2]) == 1


def trials_of(*ious: float, name: str = "a") -> list[Trial]:
    return [Trial(Path(f"{n}.jpg"), name, dict.fromkeys(THRESHOLDS, value)) for n, value in enumerate(ious)]


def test_which_way_is_used_and_which_mask_is_named() -> None:
    for other, used in (((0.6, 0.7, 0.75, 0.6), "y"), ((0.9, 0.3, 0.8, 0.5), "x")):  # the second is ahead by chance
        trials = {"x": trials_of(0.5, 0.6, 0.7, 0.5), "y": trials_of(*other)}
        assert better(trials, {way: expect(each) for way, each in trials.items()}) == used
    named = disagreeing([*trials_of(0.7, 0.1, 0.8, 0.6), *trials_of(0.7, 0.1, name="b")], 0.5)
    assert named == {"a": ["1.jpg"]}


def test_the_curve(bright: Bright, tmp_path: Path) -> None:
    write_curve(tmp_path, bright, [supports(tmp_path, 6, [200] * 6)], 0.5)  # type: ignore[arg-type]
    points = json.loads((tmp_path / "curve.json").read_text())
    assert [(point["masks"], point["iou"]) for point in points] == [(1, 1), (2, 1), (5, 1)]
    assert {len(classes["thing"][0]) for classes in bright.sets} == {1, 2, 5}
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 400
    alone = tmp_path / "alone"
    with pytest.warns(UserWarning, match="--curve: no class has two supports"):
        write_curve(alone, bright, [supports(tmp_path, 1, [200])], 0.5)  # type: ignore[arg-type]
    assert not alone.exists()

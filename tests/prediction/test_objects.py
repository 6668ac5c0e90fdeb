"""Objects of masks, compared with OpenCV's connected components."""

import cv2
import numpy as np
import pytest

from prediction import objects
from prediction.objects import find_objects, object_scores
from tests.toy import generator


@pytest.mark.parametrize("strip", [1 << 24, 20])
def test_objects_are_the_connected_components(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    monkeypatch.setattr(objects, "STRIP", strip)
    rng = generator()
    for _ in range(50):
        shape = tuple(rng.integers(1, 14, 2))
        mask = (rng.integers(1, 3, shape) * (rng.random(shape) < rng.uniform(0.1, 1))).astype(np.uint8)
        found, drawn = find_objects(mask), np.zeros_like(mask)
        for value in (1, 2):
            _, labels, _, centres = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=8)
            mine = [item for item in found if item.value == value]
            for item in mine:
                left, top, right, bottom = item.box
                region = item.region()
                number = labels[item.runs[0, 0], item.runs[0, 1]]
                assert np.array_equal(region > 0, labels[top:bottom, left:right] == number)
                assert region.sum() == item.area == (labels == number).sum()
                assert np.allclose(item.centroid, centres[number] + 0.5)
                drawn[top:bottom, left:right][region > 0] = value
            firsts = [tuple(item.runs[0, :2]) for item in mine]
            assert len(mine) == len(centres) - 1 and firsts == sorted(firsts)
        assert np.array_equal(drawn, mask)


def test_sides_are_those_of_the_rectangle_that_fits_best() -> None:
    mask = np.zeros((120, 120), np.uint8)
    mask[7, 3:8] = 1
    cv2.fillPoly(mask, [cv2.boxPoints(((60, 60), (70, 20), 30)).astype(np.int32)], 2)
    line, turned = find_objects(mask)
    assert line.sides() == pytest.approx((5, 1)) and turned.sides() == pytest.approx((70, 20), abs=3)  # with its border
    assert line.sides(np.array([[0.5, 0], [0, -20]])) == pytest.approx((20, 2.5))


def test_scores_are_means_over_each_object() -> None:
    mask = np.array([[1, 0, 1], [2, 0, 1]], np.uint8)
    probabilities = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    assert object_scores(mask, probabilities) == {1: [0, 3.5], 2: [9]}
    assert find_objects(mask * 0) == []


def test_scores_of_objects_are_means_over_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = generator()
    mask = (rng.random((60, 50)) < 0.45).astype(np.uint8)
    probabilities = rng.random((1, 60, 50)).astype(np.float32)
    _, labels = cv2.connectedComponents(mask, connectivity=8)
    order = dict.fromkeys(labels[labels > 0].tolist())
    expected = [float(probabilities[0][labels == label].mean()) for label in order]
    for strip in (objects.STRIP, 400):
        monkeypatch.setattr(objects, "STRIP", strip)
        assert object_scores(mask, probabilities)[1] == pytest.approx(expected, rel=1e-5)

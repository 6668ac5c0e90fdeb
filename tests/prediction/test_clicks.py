import numpy as np
import pytest
import torch

from prediction.clicks import Click, mask_from_clicks
from prediction.predictor import Predictor
from tests.toy import draw_image, write_experiment


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Of fixed weights: with one in seven drawn ones, a backbone that never learnt takes both classes for one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Predictor.from_checkpoint(*write_experiment(tmp_path_factory.mktemp("clicks")), device="cpu")


@pytest.fixture(scope="module")
def picture() -> tuple[np.ndarray, np.ndarray]:
    """An image with an ellipse of each of two classes, left and right, and their mask."""
    image, mask = draw_image(np.random.default_rng(0), 120, 200, [3, 5])
    return image, mask


def click(mask: np.ndarray, value: int, add: bool) -> Click:
    rows, columns = np.nonzero(mask == value)
    return Click(columns.mean() / mask.shape[1], rows.mean() / mask.shape[0], add)


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float(((found == 1) & truth).sum() / ((found == 1) | truth).sum())


def test_clicks_grow_and_shrink_a_mask(predictor: Predictor, picture: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = picture
    empty = np.zeros(truth.shape, np.uint8)
    one, two = click(truth, 3, True), click(truth, 5, True)
    first = mask_from_clicks(predictor, image, [one, click(truth, 5, False)], empty)
    assert first.shape == truth.shape and set(np.unique(first)) == {0, 1}
    assert iou(first, truth == 3) > 0.8
    both = mask_from_clicks(predictor, image, [one, two], empty)
    assert iou(both, np.isin(truth, (3, 5))) > 0.8
    taken = mask_from_clicks(predictor, image, [click(truth, 5, False)], np.isin(truth, (3, 5)).astype(np.uint8))
    assert iou(taken, truth == 3) > 0.8
    assert not mask_from_clicks(predictor, image, [click(truth, 5, False)], empty).any()

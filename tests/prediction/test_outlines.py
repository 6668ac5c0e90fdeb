"""The guided filter: what it leaves as it is, and what it draws to an image's edges."""

import cv2
import numpy as np

from prediction.outlines import guided_filter, sharpen
from tests.toy import generator


def errors(values: np.ndarray, truth: np.ndarray) -> int:
    """Pixels on the wrong side of 0."""
    return int(((values > 0) != (truth == 1)).sum())


def test_a_linear_function_of_the_colours_stays() -> None:
    noise = cv2.GaussianBlur(generator().random((90, 120, 3)), (0, 0), 6)
    image = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    values = image.astype(np.float32) / 255 @ np.array([0.5, -1.0, 2.0], np.float32)
    np.testing.assert_allclose(guided_filter(values, image)[8:-8, 8:-8], values[8:-8, 8:-8], atol=0.12)


def test_a_coarse_mask_takes_the_edges_of_the_image() -> None:
    truth = cv2.ellipse(np.zeros((120, 160), np.uint8), (80, 60), (45, 30), 20, 0, 360, 1, -1)
    image = np.where(truth[..., None] == 1, [200, 60, 60], [60, 120, 200]).astype(np.uint8)
    coarse = cv2.resize(cv2.resize(truth.astype(np.float32), (10, 8), interpolation=cv2.INTER_AREA), (160, 120)) - 0.5

    assert errors(guided_filter(coarse, image), truth) < errors(coarse, truth) / 2


def test_grains_of_an_image_are_no_objects() -> None:
    truth = cv2.ellipse(np.zeros((120, 160), np.uint8), (80, 60), (45, 30), 20, 0, 360, 1, -1)
    noise = generator().normal(0, 12, (*truth.shape, 1))  # of a dark and grey photograph
    image = (np.where(truth[..., None] == 1, 80, 50) + noise + np.zeros(3)).clip(0, 255).astype(np.uint8)
    coarse = cv2.resize(cv2.resize(truth.astype(np.float32), (20, 15), interpolation=cv2.INTER_AREA), (160, 120)) - 0.5

    def parts(values: np.ndarray) -> int:
        return cv2.connectedComponents((values > 0).astype(np.uint8))[0] - 1

    found = sharpen(coarse[None], image)[0]
    assert parts(found) == 1 and parts(guided_filter(coarse, image)) > 10
    assert errors(found, truth) < errors(coarse, truth)

"""The picture of README: generated images, segmented without any training by the method `adapt`."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.demo import draw_image, looks
from prediction.predictor import Predictor
from util.image import RGB
from util.pixels import IGNORE
from util.visualize import Tile, overlay, panel, save_image

SIZE, CLASS = 400, 7  # pixels, the class that is asked for
SEEDS = (1, 2)  # of the support's image and of the query's


def grey(probability: NDArray[np.float32]) -> RGB:
    """Probabilities (h, w) in [0, 1] as grey."""
    return np.repeat((255 * probability).round().astype(np.uint8)[..., None], 3, axis=2)


def draw_example(path: Path) -> Path:
    """Write the panel to `path`; the backbone is that of config/predict.yaml."""
    (support, labels), (query, _) = (draw_image(looks(), CLASS, SIZE, np.random.default_rng(seed)) for seed in SEEDS)
    mask = np.where(labels == IGNORE, IGNORE, labels == CLASS).astype(np.uint8)
    predictor = Predictor.from_method("adapt", device="cpu")
    predictor.set_support([support], [mask])
    found = predictor.predict(query)
    tiles = [
        Tile("support: image and mask", overlay(support, mask == 1)),
        Tile("query", query),
        Tile("probability", grey(found.probability)),
        Tile("result", overlay(query, found.mask)),
    ]
    save_image(path, panel(tiles, 300))
    return path

"""The picture of README: coins in a photograph, segmented by what others show, without any training."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from prediction.predictor import Predictor
from tools.demo import write_photographs
from util.errors import UserError
from util.image import RGB, read_image
from util.mask import interpret_mask
from util.visualize import Tile, overlay, panel, save_image

HEIGHT = 190  # pixels of a tile


def grey(probability: NDArray[np.float32]) -> RGB:
    """Probabilities (h, w) in [0, 1] as grey."""
    return np.repeat((255 * probability).round().astype(np.uint8)[..., None], 3, axis=2)


def draw_example(path: Path) -> Path:
    """Write the panel to `path`; the backbone is that of config/predict.yaml. UserError without scikit-image."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        if not write_photographs(folder):
            raise UserError(f"{path}: is drawn of a photograph of scikit-image; pip install scikit-image")
        support, query = (read_image(folder / file) for file in ("support/coin/photo.jpg", "query/coins.jpg"))
        mask = interpret_mask(folder / "support/coin/photo.png").label
    predictor = Predictor.from_method("adapt", device="cpu")
    predictor.set_support([support], [mask])
    query = query[-len(support) :]  # as high as the support, so that the tiles of both rows have one width
    found = predictor.predict(query)
    rows = [
        [Tile("support: image and mask", overlay(support, mask)), Tile("query", query)],
        [Tile("probability", grey(found.probability)), Tile("result", overlay(query, found.mask))],
    ]
    save_image(path, np.vstack([panel(row, HEIGHT) for row in rows]))
    return path

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prediction.predictor import Predictor
from tests.toy import draw_image, generator, write_experiment
from util.config import Config


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A toy experiment with its config, and its random weights for 1 shot."""
    return write_experiment(tmp_path_factory.mktemp("browser"))


@pytest.fixture
def predictor(experiment: tuple[Config, Path]) -> Predictor:
    return Predictor.from_checkpoint(*experiment, device="cpu", cache_mb=100)


def scene(path: Path, height: int = 60, width: int = 80, class_id: int = 3) -> np.ndarray:
    """Write an image with one object; returns the object's mask (h, w) of 0 and 1."""
    image, mask = draw_image(generator(), height, width, [class_id])
    Image.fromarray(image).save(path)
    return (mask == class_id).astype(np.uint8)

"""Random weights, supports, and predict.py called as from the command line."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import predict
from tests.predict.runs import COLORS, arguments
from tests.toy import draw_image, generator, write_experiment


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights where training leaves them, with its config."""
    return write_experiment(tmp_path_factory.mktemp("predict"))[1]


@pytest.fixture
def support(tmp_path: Path) -> Path:
    """Two classes, each with two images in a subfolder."""
    for number, class_id in enumerate(COLORS * 2):
        image, mask = draw_image(generator(), 40, 50, [class_id])
        folder = tmp_path / "support" / f"thing{class_id}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.jpg")
        Image.fromarray(((mask == class_id) * 255).astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "support"


@pytest.fixture
def run(weights: Path, support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*more: object) -> int:
        monkeypatch.setattr(sys, "argv", arguments(weights, tmp_path, *more))
        return predict.main()

    return call

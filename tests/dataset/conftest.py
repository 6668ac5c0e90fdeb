"""A small data set of random images and masks, and configs that point at it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from util.config import Config, load_config

CONFIG = Path(__file__).resolve().parents[2] / "config" / "pascal" / "pascal_split0_resnet50_manet.yaml"

MakeConfig = Callable[..., Config]


@pytest.fixture
def generator() -> np.random.Generator:
    """Brought back by the seed that a failing test prints."""
    return np.random.default_rng(torch.initial_seed())


@pytest.fixture
def toy_root(tmp_path: Path, generator: np.random.Generator) -> Path:
    """A folder in the VOC layout: 8 classes, 90 training and 60 validation images of about 50 x 40 pixels."""
    root = tmp_path / "toy"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{i} thing {i}\n" for i in range(1, 9)))
    for mode, count in (("train", 90), ("val", 60)):
        lines = []
        for number in range(count):
            name = f"{mode}{number:03d}"
            write_image(root, name, number % 8 + 1, generator)
            lines.append(f"JPEGImages/{name}.jpg SegmentationClassAug/{name}.png\n")
        (root / "ImageSets" / f"{mode}.txt").write_text("".join(lines))
    return root


def write_image(root: Path, name: str, class_id: int, generator: np.random.Generator) -> None:
    """One class for certain, up to two others, or ignored pixels, beneath it."""
    h, w = generator.integers(35, 60, 2)
    mask = np.zeros((h, w), np.uint8)
    for value in generator.choice([*range(1, 9), 255], generator.integers(0, 3), replace=False):
        top, left, height, width = generator.integers(0, 25, 4)
        mask[top : top + height + 1, left : left + width + 1] = value
    top, left, height, width = generator.integers(12, 22, 4)
    mask[top : top + height, left : left + width] = class_id
    palette = Image.fromarray(mask).convert("P")
    palette.putpalette(generator.integers(0, 256, 768).astype(np.uint8).tobytes())
    palette.save(root / "SegmentationClassAug" / f"{name}.png")
    Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")


@pytest.fixture
def toy_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeConfig:
    """Config of a toy data set, with other keys; the user's cache is tmp_path/cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(root: Path, **keys: object) -> Config:
        settings = {"data_set": "toy", "data_root": root, "num_classes": 8, "area_threshold": 100, **keys}
        return load_config(CONFIG, [str(text) for item in settings.items() for text in item])

    return make

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from util.visualize import (
    GAP,
    IGNORED,
    PALETTE,
    PAPER,
    Tile,
    class_color,
    episode_panel,
    mosaic,
    overlay,
    panel,
    save_image,
    save_index,
)

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009),
# severity 1, for linear RGB
DEFICIENCIES = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng().integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(height: int, width: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = value
    return mask


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colors_differ_for_colour_blind_readers(deficiency: str) -> None:
    srgb = np.array(PALETTE) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ DEFICIENCIES[deficiency].T, 0, 1)
    seen = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(seen.astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]
    assert min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 10


def test_overlay_fills_outlines_and_leaves_the_rest() -> None:
    image, mask = photo(80, 120), square(80, 120, 2)
    drawn = overlay(image, mask, alpha=0.5)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert np.array_equal(drawn[:15], image[:15]) and np.array_equal(drawn[:, :25], image[:, :25])
    inner = np.s_[26:54, 36:84]
    expected = (image[inner].astype(float) + np.array(class_color(2))) / 2
    assert np.abs(drawn[inner] - expected).max() <= 0.5
    assert np.abs(drawn[20, 40:80] - np.array(class_color(2))).max() < 60  # one pixel wide, antialiased


def test_overlay_greys_ignored_pixels_and_outlines_the_truth() -> None:
    image, mask = photo(60, 60), square(60, 60, 255)
    drawn = overlay(image, mask, truth=square(60, 60), alpha=1.0)
    assert (drawn[20:40, 20:40] == IGNORED).all()
    assert drawn[15, 20:40].min() > 195
    assert drawn[14, 20:40].max() < 80 and drawn[16, 20:40].max() < 80


@pytest.mark.parametrize("count", [1, 2, 5])
def test_mosaic_shows_every_image(count: int) -> None:
    colors = [tuple(color) for color in PALETTE[:count]]
    board = mosaic([np.full((50, 70, 3), color, np.uint8) for color in colors], 200)
    assert board.shape[0] in (199, 200)
    assert {tuple(pixel) for pixel in board.reshape(-1, 3).tolist()} - {PAPER} == set(colors)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (300, 40), (20, 700), (1, 1)])
@pytest.mark.parametrize("shots", [1, 5])
def test_episode_panel_of_any_shape(height: int, width: int, shots: int) -> None:
    supports = [(photo(40, 50), square(40, 50)) for _ in range(shots)]
    truth = np.ones((height, width), np.uint8)
    truth[0, 0] = 255 if height > 1 else 1
    prediction = np.ones((height, width), np.int64)
    drawn = episode_panel(supports, photo(height, width), truth, {"ours": (prediction, 0.5)}, "großer Vogel", 120)
    assert drawn.dtype == np.uint8 and drawn.shape[0] > 20 + GAP


def test_panel_shows_legend_colours_and_widens_for_long_text() -> None:
    plain = panel([Tile("", np.zeros((50, 50, 3), np.uint8))], 50)
    assert plain.shape == (50 + 2 * GAP, 50 + 2 * GAP, 3)
    entries = [(PALETTE[3], "a class whose name is a good deal longer than its image is wide"), (PALETTE[5], "b")]
    drawn = panel([Tile("title", np.zeros((50, 50, 3), np.uint8), entries)], 50)
    assert drawn.shape[1] > 300 and drawn.shape[0] > 50 + 2 * GAP + 40
    for color, _ in entries:
        assert (drawn == color).all(2).sum() > 50


def test_index_png_keeps_the_values(tmp_path: Path) -> None:
    mask = np.random.default_rng().integers(0, 256, (47, 31), dtype=np.uint8).T
    save_index(tmp_path / "deep/er/mask.png", mask)
    read = Image.open(tmp_path / "deep/er/mask.png")
    assert read.mode == "P" and np.array_equal(np.asarray(read), mask)
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["mask.png"]
    palette = np.array(read.getpalette()).reshape(-1, 3)
    assert tuple(palette[0]) == (0, 0, 0) and tuple(palette[2]) == class_color(2)


def test_saved_image_is_the_image(tmp_path: Path) -> None:
    image = photo(20, 30)
    save_image(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    save_image(tmp_path / "a.JPG", np.full((20, 30, 3), 90, np.uint8))
    assert Image.open(tmp_path / "a.JPG").format == "JPEG"

"""A prediction drawn on its image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from util.image import RGB
from util.visualize import PAPER, Color, Tile, draw_tile, fit, overlay

OVERLAY_SIDES = 320, 2000  # pixels of an overlay's longer side: smaller images are enlarged, larger ones reduced
LETTERS = 15, 40  # pixels of a legend's letters: at least so many, and this part of the longer side


def overlay_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which an image of that size is drawn, in pixels."""
    side = min(max(height, width, OVERLAY_SIDES[0]), OVERLAY_SIDES[1])
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_overlay(image: RGB, mask: NDArray[np.uint8], entries: Sequence[tuple[Color, str]]) -> RGB:
    """An image, of its own size or reduced, with its mask filled translucently and outlined, and below it a legend."""
    size = overlay_size(*mask.shape)
    shown = image if image.shape[:2] == size else fit(image, *size)
    drawn = overlay(shown, mask)
    letters = max(LETTERS[0], max(shown.shape) // LETTERS[1])
    return np.asarray(draw_tile(Tile("", drawn, entries or [(PAPER, "nothing found")]), letters))

"""Outlines of scores that are coarser than their image, drawn to the image's own edges."""

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

MAX_SIDE = 1024  # pixels at which edges are looked for
GRAIN = 5  # pixels of the median that takes noise out of an image, whose grains are no edges
STEP = 4  # pixels between the positions at which the filter is fitted
RADIUS = 0.03  # of its windows, in units of the image's diagonal
SMOOTHNESS = 1e-4  # variance of colours, from 0 to 1, below which a window counts as flat
SURE = 8.0  # from which a margin counts no more


def sharpen(margins: Map, image: NDArray[np.uint8]) -> Map:
    """Margins (N, h, w) of an image (H, W, 3) of the same proportions, at their own size, with its edges."""
    height, width = margins.shape[1:]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    guide = np.asarray(cv2.medianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA), GRAIN), np.uint8)
    fitted = [
        guided_filter(cv2.resize(margin, size, interpolation=cv2.INTER_LINEAR), guide)
        for margin in margins.clip(-SURE, SURE)
    ]
    return np.stack([cv2.resize(x, (width, height), interpolation=cv2.INTER_LINEAR) for x in fitted])


def guided_filter(values: Map, image: NDArray[np.uint8]) -> Map:
    """Values (h, w) made a linear function of the colours of `image (h, w, 3)` in every window, and averaged.

    The fast guided filter with a colour guide (He, Sun, arXiv 1505.00996): fitted on a smaller image, applied to the
    whole one.
    """
    guide = image.astype(np.float32) / 255
    small = max(1, values.shape[1] // STEP), max(1, values.shape[0] // STEP)
    colours, target = (
        np.asarray(cv2.resize(x, small, interpolation=cv2.INTER_AREA), np.float32) for x in (guide, values)
    )
    side = 2 * max(1, round(RADIUS * float(np.hypot(*values.shape)) / STEP)) + 1

    def box(x: Map) -> Map:
        return np.asarray(cv2.blur(x, (side, side)), np.float32).reshape(x.shape)

    mean, level = box(colours), box(target)
    products = (colours[..., :, None] * colours[..., None, :]).reshape(*level.shape, 9)
    covariance = box(products).reshape(*level.shape, 3, 3) - mean[..., :, None] * mean[..., None, :]
    joint = box(colours * target[..., None]) - mean * level[..., None]
    slope = np.linalg.solve(covariance + SMOOTHNESS * np.eye(3, dtype=np.float32), joint[..., None])[..., 0]
    offset = level - (slope * mean).sum(-1)
    lines = cv2.resize(box(np.dstack([slope, offset])), values.shape[::-1], interpolation=cv2.INTER_LINEAR)
    red, green, blue, rest = cv2.split(np.asarray(lines))
    return np.asarray(red * guide[..., 0] + green * guide[..., 1] + blue * guide[..., 2] + rest, np.float32)

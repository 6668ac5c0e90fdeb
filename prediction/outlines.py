"""Outlines of maps that are coarser than their image, drawn to the image's own edges."""

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

STEP = 4  # pixels between the positions at which the filter is fitted
RADIUS = 0.02  # of the windows, in units of the image's diagonal
SMOOTHNESS = 1e-3  # variance of colours, from 0 to 1, below which a window counts as flat


def guided_filter(values: Map, image: NDArray[np.uint8]) -> Map:
    """Values (h, w) made a linear function of the colours of `image (h, w, 3)` in every window, and averaged.

    The fast guided filter with a colour guide (He, Sun, arXiv 1505.00996): fitted on a smaller image, applied to the
    whole one.
    """
    guide = image.astype(np.float32) / 255
    small = tuple(max(1, side // STEP) for side in values.shape[::-1])
    colours = cv2.resize(guide, small, interpolation=cv2.INTER_AREA)
    target = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
    side = 2 * max(1, round(RADIUS * float(np.hypot(*values.shape)) / STEP)) + 1

    def box(x: Map) -> Map:
        return cv2.blur(x, (side, side)).reshape(x.shape)

    mean, level = box(colours), box(target)
    products = (colours[..., :, None] * colours[..., None, :]).reshape(*colours.shape[:2], 9)
    covariance = box(products).reshape(*products.shape[:2], 3, 3) - mean[..., :, None] * mean[..., None, :]
    joint = box(colours * target[..., None]) - mean * level[..., None]
    slope = np.linalg.solve(covariance + SMOOTHNESS * np.eye(3, dtype=np.float32), joint[..., None])[..., 0]
    offset = level - (slope * mean).sum(-1)
    lines = cv2.resize(box(np.dstack([slope, offset])), values.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray((lines[..., :3] * guide).sum(-1) + lines[..., 3], np.float32)

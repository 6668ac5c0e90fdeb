"""Outlines of an object through the centres of its outermost pixels, as drawing programs fill them."""

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.int64]  # (n, 2): x, y


def outline(region: NDArray[np.uint8]) -> Points | None:
    """The corners of a region (h, w) without holes; None where it has some, or encloses no area."""
    rings, _ = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    points = np.asarray(rings[0], np.int64).reshape(-1, 2)
    return points if len(rings) == 1 and len(points) > 2 else None


def single_outline(region: NDArray[np.uint8]) -> Points:
    """The corners of a region (h, w) in one line, which goes along a row of the region to each hole and back.

    `cv2.fillPoly` fills it to the region again. A straight row of pixels has a corner twice: two points are no polygon.
    """
    rings, _ = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer, *holes = (np.asarray(ring, np.int64).reshape(-1, 2) for ring in rings)
    for hole in sorted(holes, key=lambda ring: int(ring[:, 0].min())):
        start = hole[:, 0].argmin()
        x, y = hole[start]
        left = x + 1 - np.argmin(np.append(region[y, x::-1], 0))  # where the row's run begins, on a line drawn before
        at = int(np.flatnonzero((outer == (left, y)).all(1))[0])
        outer = np.concatenate([outer[: at + 1], np.roll(hole, -start, 0), [(x, y)], outer[at:]])
    corners = _corners(outer) if len(outer) > 1 else outer
    return np.resize(corners, (max(3, len(corners)), 2))


def _corners(points: Points) -> Points:
    """A closed line without the points at which it goes straight on."""
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    before, after = before[(moves := before.any(1))], after[moves]
    return points[moves][(np.sign(before) != np.sign(after)).any(1)]

"""The objects of an index mask: its connected regions, from runs of pixels, so that a mask of any size can be read."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

STRIP = 1 << 24  # pixels that are looked at at once


class MaskObject(NamedTuple):
    """A region of one class whose pixels touch at sides or corners; a pixel (x, y) covers x to x + 1 and y to y + 1."""

    value: int  # in the mask
    area: int  # pixels
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive
    centroid: tuple[float, float]  # x, y
    runs: NDArray[np.int64]  # (n, 3): row, start and end of its runs, from top to bottom

    def region(self) -> NDArray[np.uint8]:
        """Its pixels within the box (h, w): 1, else 0."""
        left, top, right, bottom = self.box
        flat = np.zeros((bottom - top) * (right - left) + 1, np.int8)
        first = (self.runs[:, 0] - top) * (right - left) - left
        np.add.at(flat, first + self.runs[:, 1], 1)
        np.add.at(flat, first + self.runs[:, 2], -1)
        return np.cumsum(flat[:-1], dtype=np.int8).view(np.uint8).reshape(bottom - top, right - left)

    def sides(self, linear: NDArray[np.float64] | None = None) -> tuple[float, float]:
        """Length and width of the smallest rectangle around it, turned as it fits best, after a linear map (2, 2)."""
        row, start, end = (self.runs - [self.box[1], self.box[0], self.box[0]]).T
        corners = np.stack([np.tile([*start, *end], 2), [*row, *row, *(row + 1), *(row + 1)]], 1).astype(np.float64)
        if linear is not None:
            corners = corners @ linear.T
        _, sides, _ = cv2.minAreaRect(corners.astype(np.float32))
        return max(sides), min(sides)


def find_objects(mask: NDArray[np.uint8]) -> list[MaskObject]:
    """The objects of a mask (h, w) in which 0 is background, in the order of their first pixels, row by row."""
    runs, values, label = _labelled_runs(mask)
    if not len(runs):
        return []
    groups = np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1])
    return [_object(runs[group], int(values[group[0]])) for group in groups]


def object_scores(mask: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> dict[int, list[float]]:
    """By value the mean probability over each of its objects, in their order; probabilities[value - 1] is (h, w)."""
    runs, values, label = _labelled_runs(mask)
    scores: dict[int, list[float]] = {}
    for value in np.unique(values).tolist():
        of_value = values == value
        own, number = runs[of_value], np.unique(label[of_value], return_inverse=True)[1]
        sums = np.bincount(number, _run_sums(own, probabilities[value - 1]))
        scores[value] = (sums / np.bincount(number, own[:, 2] - own[:, 1])).tolist()
    return scores


def _run_sums(runs: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sums (n,) of values (h, w) in runs (n, 3) from top to bottom, a strip of rows at a time."""
    first, last, left, right = runs[0, 0], runs[-1, 0] + 1, runs[:, 1].min(), runs[:, 2].max()
    height = max(1, STRIP // 4 // (right - left))
    found = []
    for top in range(first, last, height):
        row, start, end = runs[slice(*np.searchsorted(runs[:, 0], [top, top + height]))].T
        strip = values[top : min(top + height, last), left:right]
        sums = np.append(0.0, np.cumsum(strip, dtype=np.float64))
        offset = (row - top) * (right - left) - left
        found.append(sums[offset + end] - sums[offset + start])
    return np.concatenate(found)


def _labelled_runs(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Runs (n, 3) and values (n,) as `_runs`, and the number (n,) of each one's object, in the order of first runs."""
    runs, values = _runs(mask)
    _, label = connected_components(_neighbours(runs, values, mask.shape[1]), directed=False)
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    return runs, values, np.argsort(np.argsort(first))[label]


def _runs(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Row, start and end (n, 3) of all runs of one value that is not 0, and that value (n,)."""
    height, width = mask.shape
    rows = max(1, STRIP // width)
    found = [(np.empty((0, 3), np.int64), np.empty(0, np.uint8))]
    for top in range(0, height, rows):
        strip = mask[top : top + rows]
        change = np.ones(strip.shape, np.bool_)
        np.not_equal(strip[:, 1:], strip[:, :-1], out=change[:, 1:])
        start = np.flatnonzero(change)
        end = np.append(start[1:], strip.size)
        values = strip.ravel()[start]
        row, column = np.divmod(start, width)
        runs = np.stack([row + top, column, column + end - start], 1)
        found.append((runs[values > 0], values[values > 0]))
    return np.concatenate([runs for runs, _ in found]), np.concatenate([values for _, values in found])


def _neighbours(runs: NDArray[np.int64], values: NDArray[np.uint8], width: int) -> coo_array:
    """Which runs of one value touch one in the next row, as a graph."""
    row, start, end = runs.T
    below = (row + 1) * (width + 1)
    first = np.searchsorted(row * (width + 1) + end, below + start)
    count = np.searchsorted(row * (width + 1) + start, below + end, side="right") - first
    upper = np.repeat(np.arange(len(runs)), count)
    lower = np.arange(count.sum()) + np.repeat(first - np.append(0, np.cumsum(count)[:-1]), count)
    same = values[upper] == values[lower]
    return coo_array((np.ones(same.sum(), np.int8), (upper[same], lower[same])), (len(runs), len(runs)))


def _object(runs: NDArray[np.int64], value: int) -> MaskObject:
    row, start, end = runs.T
    length = end - start
    area = int(length.sum())
    box = int(start.min()), int(row[0]), int(end.max()), int(row[-1]) + 1
    centroid = float((length * (start + end)).sum() / 2 / area), float((length * row).sum() / area + 0.5)
    return MaskObject(value, area, box, centroid, runs)

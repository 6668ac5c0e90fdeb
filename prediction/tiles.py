"""Images larger than what a network sees: in tiles, whose margins are blended, from strip to strip."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from tempfile import TemporaryFile, gettempdir
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from prediction.masks import object_mask
from util.errors import UserError
from util.image import RGB, read_image
from util.pixels import IGNORE

if TYPE_CHECKING:
    from prediction.predictor import Prediction, Predictor

Window = Callable[[int, int, int, int], RGB]  # the pixels (height, width, 3) from top, left on

STRIP = 1 << 22  # pixels whose probabilities are computed or summed up at once
IN_MEMORY = 1 << 28  # bytes of probabilities, beyond which they lie in a file


class Tiling(NamedTuple):
    """How images are cut."""

    side: int  # of a tile, pixels of the image
    overlap: float = 0.25  # of neighbouring tiles, in units of their side

    def cuts(self, size: Sequence[int]) -> bool:
        """Whether an image (h, w) is larger than a tile."""
        return max(size) > self.side

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side of an image; the last one ends where the image does."""
        step = max(1, round(self.side * (1 - self.overlap)))
        last = max(length - self.side, 0)
        return [*range(0, last, step), last]


def window_of(image: RGB) -> Window:
    """An image in memory as windows of it."""
    return lambda top, left, height, width: image[top : top + height, left : left + width]


def check_tiling(predictor: "Predictor", tiling: Tiling) -> None:
    """UserError for tiles that a network cannot tell apart, or an overlap that is none."""
    maps = {info.name: info.stride for info in predictor.model.backbone.maps}
    step = max(maps[name] for name in predictor.model.maps)
    if tiling.side < step:
        raise UserError(f"--tile {tiling.side}: is less than the {step} pixels of a step of this network; give more")
    if not 0 <= tiling.overlap <= 0.9:
        raise UserError(f"--overlap {tiling.overlap}: should be from 0 to 0.9")


def strips(
    predictor: "Predictor", window: Window, size: tuple[int, ...], tiling: Tiling, batch: int = 1
) -> Iterator["Prediction"]:
    """What is found in an image (h, w), strip by strip from top to bottom.

    A tile is scored like an image of its own; where tiles overlap, their margins over the background are averaged with
    the weights of a Hann window. In memory are the tiles of one row.
    """
    height, width = size
    names, tops, lefts = tuple(predictor.states), tiling.starts(height), tiling.starts(width)
    shape = min(tiling.side, height), min(tiling.side, width)
    hann = torch.from_numpy(np.outer(*(np.hanning(side + 2)[1:-1] for side in shape))).float()
    total, weight = torch.zeros(len(names), shape[0], width), torch.zeros(shape[0], width)
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for start in range(0, len(lefts), batch):
            group = lefts[start : start + batch]
            tiles = [predictor.network_input(window(top, left, *shape)) for left in group]
            for left, scores in zip(group, predictor.scores(tiles), strict=True):
                place = slice(left, left + shape[1])
                total[..., place] += hann * predictor.margins(scores, shape).cpu()
                weight[:, place] += hann
        done, rows = following - top, max(1, STRIP // width)
        for row in range(0, done, rows):
            part = slice(row, min(row + rows, done))
            yield predictor.from_margins(names, total[:, part] / weight[part])
        rest = torch.zeros_like(total[:, :done]), torch.zeros_like(weight[:done])
        total, weight = torch.cat([total[:, done:], rest[0]], 1), torch.cat([weight[done:], rest[1]])


def predict_tiles(
    predictor: "Predictor", window: Window, size: tuple[int, ...], tiling: Tiling, batch: int = 1
) -> "Prediction":
    """What is found in a whole image; probabilities are kept in half precision. UserError where a disk is full."""
    names = tuple(predictor.states)
    mask, probabilities = np.empty(size, np.uint8), _large((len(names), *size), np.float16)
    top = 0
    for strip in strips(predictor, window, size, tiling, batch):
        rows = slice(top, top + len(strip.mask))
        mask[rows], probabilities[:, rows] = strip.mask, strip.class_probabilities
        top = rows.stop
    return replace(strip, mask=mask, class_probabilities=probabilities)


def _large(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array that is not filled; a large one lies in a temporary file, whose memory the system may take back."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < IN_MEMORY:
        return np.empty(shape, dtype)
    with TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would end the process
            else:
                file.truncate(size)
        except OSError as error:
            reason = f"{error.strerror}: {size / 1e9:.1f} GB are needed; set TMPDIR to a folder with more room"
            raise UserError(f"{gettempdir()}: {reason}") from None
        return np.memmap(file, dtype, "r+", shape=shape)


def crop_supports(classes: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Supports as a tile shows them: {name: (images, masks)} cut to squares of `side` pixels around their objects.

    A larger object is kept whole; smaller images get a black frame, which is not judged.
    """
    cropped: dict[str, tuple[list[RGB], list[NDArray[np.uint8]]]] = {}
    for name, (images, masks) in classes.items():
        pairs = [_crop(read_image(image), mask, side, str(image)) for image, mask in zip(images, masks, strict=True)]
        cropped[name] = [image for image, _ in pairs], [mask for _, mask in pairs]
    return cropped


def _crop(image: RGB, mask: Any, side: int, where: str) -> tuple[RGB, NDArray[np.uint8]]:
    label = object_mask(mask, image.shape[:2], where)
    left, top, width, height = cv2.boundingRect((label == 1).astype(np.uint8))
    side = max(side, height, width)
    corners = []
    for start, extent, length in zip((top, left), (height, width), image.shape, strict=False):
        middle = start + extent // 2 - side // 2
        corners.append(min(max(middle, 0), max(length - side, 0)))
    cut = tuple(slice(corner, corner + side) for corner in corners)
    frame, framed = np.zeros((side, side, 3), np.uint8), np.full((side, side), IGNORE, np.uint8)
    inside = label[cut]
    frame[: inside.shape[0], : inside.shape[1]], framed[: inside.shape[0], : inside.shape[1]] = image[cut], inside
    return frame, framed

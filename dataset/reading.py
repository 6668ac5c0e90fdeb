"""Reads the pairs of image and mask; whatever is wrong with a file is a UserError that names it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from util.errors import UserError
from util.image import image_size, open_image, read_image
from util.mask import Label as Mask
from util.mask import interpret_mask
from util.pixels import IGNORE

CROP_RATIO = 1.06  # longer side of VOC's images, 500, to the crop of its trainings, 473
OVERSIZE = 1.5  # the same ratio from which on crops are too small a part
SAMPLED = 200  # images whose sizes are looked at


def read_pair(
    image_path: Path, mask_path: Path, max_side: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """RGB image (h, w, 3), 0 to 255, and the class number of every pixel (h, w), 255 = ignore.

    With `max_side` the image, not its mask, is reduced to that longest side. UserError when a file is missing or
    unreadable, when the mask is no index image, and when the sizes differ.
    """
    image = read_image(image_path, max_side).astype(np.float32)
    mask = read_mask(mask_path)
    check_sizes(image_size(image_path) if max_side else image.shape[:2], mask, image_path, mask_path)
    return image, mask


def read_mask(path: Path) -> Mask:
    """Class number of every pixel (h, w), 255 = ignore; UserError when the file is missing or no index image."""
    return interpret_mask(path, "index").label


def read_grey_mask(path: Path) -> Mask:
    """An image of one object (h, w): 1 where its grey value is 128 or more, else 0; UserError as read_mask."""
    with open_image(path, "mask") as mask:
        return (np.asarray(mask.convert("L")) >= 128).astype(np.uint8)


def check_sizes(size: tuple[int, ...], mask: Mask, image_path: Path, mask_path: Path) -> None:
    """UserError unless an image of `size` (h, w) and its mask (h, w) are equal in size."""
    if size != mask.shape:
        (height, width), (mask_height, mask_width) = size, mask.shape
        sizes = f"mask is {mask_width}x{mask_height}, its image {image_path} is {width}x{height}"
        raise UserError(f"{mask_path}: {sizes}; make them equal")


def oversize_note(images: Sequence[Path], crop: int, max_side: int | None) -> str | None:
    """A line about images of which a crop of `crop` pixels shows too little, judged by the median of some of them."""
    some = images[:: max(len(images) // SAMPLED, 1)]
    median = int(np.median([max(image_size(path)) for path in some]))
    seen = min(median, max_side or median)
    if seen <= OVERSIZE * crop:
        return None
    return (
        f"images of {median} pixels (the median longer side) are trained on at {seen}, crops of {crop} show only "
        f"parts of them; set max_side, for example to {round(CROP_RATIO * crop)}"
    )


def count_classes(path: Path) -> dict[int, int]:
    """Class -> pixels of a mask, without background and ignored pixels; UserError as in read_pair."""
    counts = np.bincount(read_mask(path).ravel())
    return {value: count for value, count in enumerate(counts.tolist()) if count and value not in (0, IGNORE)}


class RecentArrays:
    """Arrays by key, up to `budget` bytes over all workers of a loader; the least recently used goes first."""

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes = budget, 0
        self.held: OrderedDict[Hashable, Mask] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], Mask]) -> Mask:
        """The array of a key, which must not be changed; `read` makes it where it is not held."""
        if key in self.held:
            self.held.move_to_end(key)
            return self.held[key]
        array = self.held[key] = read()
        self.nbytes += array.nbytes
        worker = get_worker_info()
        while self.nbytes > self.budget // (worker.num_workers if worker else 1):
            self.nbytes -= self.held.popitem(last=False)[1].nbytes
        return array

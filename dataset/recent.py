"""Arrays that were read last, kept so that an image that many episodes show is decoded once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

Array = NDArray[np.uint8]


class RecentArrays:
    """Arrays by key, up to `budget` bytes over all workers of a loader; the least recently used goes first."""

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes = budget, 0
        self.held: OrderedDict[Hashable, Array] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], Array]) -> Array:
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

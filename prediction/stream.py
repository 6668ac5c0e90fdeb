"""Reading, the network and writing at the same time: items go through threads in order, a bounded number at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from torch import Tensor

from prediction.tiles import Tiling, Window, predict_tiles, window_of
from util.errors import UserError
from util.image import RGB
from util.processors import processor_count

if TYPE_CHECKING:
    from prediction.predictor import Prediction, Predictor

Item = TypeVar("Item")
Rest = TypeVar("Rest")
Deferred: TypeAlias = Callable[[], Any]  # a prediction when it is called
Result = TypeVar("Result")

MAX_THREADS = 16
GPU_BATCH = 16  # images per pass through the network where nothing else is asked for; on a CPU one is fastest


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """`function` of every item, in their order, computed in threads; at most `ahead` results wait to be fetched.

    What `function` raises is raised when its result's turn has come; what was not begun then is left out.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one of what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def segment(
    predictor: "Predictor",
    items: Iterable[Item],
    read: Callable[[Item], tuple[RGB | Window, tuple[int, ...], Rest]],
    finish: Callable[[Rest, "Prediction", float], Result],
    batch: int | None = None,
    tiling: Tiling | None = None,
) -> Iterator[Result | UserError]:
    """What `finish` makes of every item, in their order; reading, the network and finishing overlap.

    `read` gives an item's image, reduced perhaps, the size that its prediction should have, and what `finish` takes
    with that prediction and the network's seconds; an image that is cut into tiles may be given by windows. Both are
    called in threads, with a bounded number of images at a time. A UserError of `read` stands in the result's place.
    """
    if batch is not None and batch < 1:
        raise UserError(f"a batch of {batch}: should be at least 1")
    names, threads = tuple(predictor.states), min(processor_count(), MAX_THREADS)
    at_once = batch or (1 if predictor.device.type == "cpu" else GPU_BATCH)

    def load(item: Item) -> tuple[Tensor | Deferred, tuple[int, ...], Rest, RGB | None] | UserError:
        try:
            image, size, rest = read(item)
        except UserError as error:
            return error
        if tiling and tiling.cuts(size):
            window = image if callable(image) else window_of(image)
            return partial(predict_tiles, predictor, window, size, tiling, at_once), size, rest, None
        whole = image(0, 0, *size) if callable(image) else image
        return predictor.network_input(whole, size), size, rest, whole

    def score() -> Iterator[tuple[Deferred, Rest, float] | UserError]:
        for group in in_batches(in_threads(load, items, threads, at_once + threads), at_once):
            start = perf_counter()
            inputs = [entry[0] for entry in group if not isinstance(entry, UserError) and isinstance(entry[0], Tensor)]
            scores = iter(predictor.scores(inputs) if inputs else [])
            seconds = (perf_counter() - start) / max(1, len(inputs))
            for entry in group:
                if isinstance(entry, UserError):
                    yield entry
                elif isinstance(entry[0], Tensor):
                    yield partial(predictor.prediction, names, next(scores), entry[1], entry[3]), entry[2], seconds
                else:
                    start = perf_counter()
                    yield partial(replace, entry[0]()), entry[2], perf_counter() - start

    def close(entry: tuple[Deferred, Rest, float] | UserError) -> Result | UserError:
        return entry if isinstance(entry, UserError) else finish(entry[1], entry[0](), entry[2])

    return in_threads(close, score(), threads, threads)

"""Files: written under a temporary name and renamed, checked, and worked on by all cores."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from tqdm import tqdm

from util.errors import UserError
from util.files import atomic_write
from util.image import UNREADABLE

Label = NDArray[np.uint8]
Pair = tuple[str, str]
Task = TypeVar("Task")
Result = TypeVar("Result")


def write_text(path: Path, text: str) -> bool:
    """Write `text` to `path` unless that is what the file holds already; return whether it was written."""
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    atomic_write(path, text)
    return True


def write_label(path: Path, label: Label) -> None:
    """Write a class map (H, W) as an 8-bit grey PNG whose grey value is the class."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())


def write_pairs(path: Path, pairs: Sequence[Pair]) -> bool:
    """Write a list file of `image mask` lines; return whether it changed."""
    return write_text(path, "".join(f"{image} {mask}\n" for image, mask in pairs))


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not empty; UserError when there is no such file."""
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None


def is_intact_png(path: Path) -> bool:
    """Whether a PNG is there and complete: every chunk present and true to its checksum."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except UNREADABLE:
        return False
    return True


def check_image(path: Path) -> tuple[int, int]:
    """Decode an image at its coarsest scale and return its (width, height); UserError when it is missing or damaged."""
    with opened_image(path) as image:
        size = _upright_size(image)
        image.draft("L", (image.width // 8, image.height // 8))
        image.load()
    return size


def _upright_size(image: Image.Image) -> tuple[int, int]:
    lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if lies_on_its_side else image.size


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open an image with PIL, and turn what goes wrong inside the block into a UserError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd metadata in photographs
            with Image.open(path) as image:
                yield image
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except UserError:
        raise
    except UNREADABLE as error:
        reason = "it is no image" if "cannot identify" in str(error) else error
        raise UserError(f"{path} is damaged: {reason}") from None


@dataclass(frozen=True)
class PoolOutcome(Generic[Result]):
    """What became of a list of tasks: the results of those that succeeded, a one-line complaint for each other."""

    results: list[Result]
    complaints: list[str]


def default_workers() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], description: str, workers: int
) -> PoolOutcome[Result]:
    """Apply `function` to every task in `workers` processes under a progress bar; its UserErrors become complaints."""
    attempt = partial(_attempt, function)
    style: dict[str, Any] = {"total": len(tasks), "desc": description, "unit": "file", "mininterval": 0.5}
    if workers <= 1 or len(tasks) < 2:
        outcomes = list(tqdm(map(attempt, tasks), **style))
    else:
        chunk = max(1, min(64, len(tasks) // (4 * workers)))
        with ProcessPoolExecutor(workers) as pool:
            outcomes = list(tqdm(pool.map(attempt, tasks, chunksize=chunk), **style))
    results = [outcome for outcome in outcomes if not isinstance(outcome, _Complaint)]
    return PoolOutcome(results, [outcome.text for outcome in outcomes if isinstance(outcome, _Complaint)])


@dataclass(frozen=True)
class _Complaint:
    text: str


def _attempt(function: Callable[[Task], Result], task: Task) -> Result | _Complaint:
    try:
        return function(task)
    except UserError as error:
        return _Complaint(str(error))


def raise_if_any(complaints: Sequence[str], what: str) -> None:
    """Print the complaints on stderr, one a line, and raise a UserError that counts them, if there are any."""
    if not complaints:
        return
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    raise UserError(f"{len(complaints)} {what} failed (named above); correct or delete those files and run again")

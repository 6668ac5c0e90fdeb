"""Files: written under a temporary name and renamed, checked, and worked on by all cores."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from dataset.lists import Pair
from util.errors import UserError, printable
from util.files import atomic_write, own_name
from util.image import open_image, shown_size
from util.mask import Label
from util.tiff import is_raster, raster_size

RECORDS = ".prepared"  # folder below a data set's own: what has been unpacked
LEAST = 2  # images of a class that an episode needs: the query and one support
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


def write_lists(root: Path, lists: Mapping[str, Sequence[Pair]]) -> None:
    """Write the list of every part, ImageSets/PART.txt."""
    for part, pairs in lists.items():
        write_text(root / "ImageSets" / f"{part}.txt", "".join(f"{image} {mask}\n" for image, mask in pairs))


def official_name(source: Path, name: str) -> str:
    """An image's name in an official file, which leads nowhere else than below its folder; UserError otherwise."""
    if own_name(name) != name or name.split() != [name]:
        raise UserError(f"{source}: the name {name!r} is no plain one; not the official file, fetch it again")
    return name


def is_intact_png(path: Path) -> bool:
    """Whether a PNG is there and complete: every chunk present and true to its checksum."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except Exception:  # damaged files make Pillow fail in any way there is
        return False
    return True


def check_image(path: Path) -> tuple[int, int]:
    """Decode an image at its coarsest scale and return its height and width as shown; UserError for a damaged one."""
    if is_raster(path):
        return raster_size(path)
    with open_image(path) as image:
        size = shown_size(image)
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
    return size


def in_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], description: str, workers: int
) -> tuple[list[Result], list[str]]:
    """Apply `function` to every task in `workers` processes under a progress bar; the results and its UserErrors."""
    attempt = partial(_attempt, function)
    style: dict[str, Any] = {"total": len(tasks), "desc": description, "unit": "file", "delay": 1}
    if workers <= 1 or len(tasks) < 2:
        outcomes = list(tqdm(map(attempt, tasks), **style))
    else:
        chunk = max(1, min(64, len(tasks) // (4 * workers)))
        outcomes = process_map(attempt, tasks, max_workers=workers, chunksize=chunk, **style)
    results = [outcome for outcome in outcomes if not isinstance(outcome, UserError)]
    return results, [str(outcome) for outcome in outcomes if isinstance(outcome, UserError)]


def _attempt(function: Callable[[Task], Result], task: Task) -> Result | UserError:
    try:
        return function(task)
    except UserError as error:
        return error


def run_all(
    function: Callable[[Task], Result], tasks: Sequence[Task], description: str, workers: int, what: str
) -> list[Result]:
    """The results of `in_parallel`; UserError as in `raise_if_any` where there are complaints."""
    results, complaints = in_parallel(function, tasks, description, workers)
    raise_if_any(complaints, what)
    return results


def raise_if_any(complaints: Sequence[str], what: str) -> None:
    """Raise a UserError with the complaint; of several print all on stderr, one a line, and raise the first."""
    if not complaints:
        return
    if len(complaints) == 1:
        raise UserError(complaints[0])
    for complaint in complaints:
        print(printable(complaint), file=sys.stderr)
    raise UserError(
        f"{len(complaints)} {what} failed (named above); correct or delete those files and run again; "
        f"the first: {complaints[0]}"
    )

"""Counts the classes of every mask of a list once, in parallel, and keeps the counts in the user's cache folder."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dataset.prepare.files import run_all
from dataset.reading import count_classes
from util.errors import UserError
from util.files import atomic_write, user_cache
from util.processors import processor_count

Stamp = tuple[int, int]  # time of the last change in nanoseconds, size in bytes
Counts = dict[int, int]  # class -> number of pixels

CACHE_VERSION = 1
POOL_FROM = 2000  # fewer masks than this are counted before a pool of processes has started

logger = logging.getLogger(__name__)


def scan_masks(root: Path, masks: Sequence[str], list_file: Path) -> dict[str, Counts]:
    """Class -> pixels of every mask (paths relative to root); only masks that are new or changed are read.

    The counts know nothing of folds or thresholds, so one scan serves all. UserError names a missing or broken mask.
    """
    stamps = {name: _stamp(os.path.join(root, name), list_file) for name in masks}  # pathlib takes 10 times as long
    places = hashlib.sha256(f"{root.resolve()} {list_file.resolve()}".encode()).hexdigest()[:16]
    cache_file = counts_folder() / f"{list_file.stem}-{places}.json"
    kept = _read_cache(cache_file)
    counts = {name: count for name, (stamp, count) in kept.items() if stamps.get(name) == stamp}
    todo = [name for name in stamps if name not in counts]
    if todo:
        workers = processor_count() if len(todo) >= POOL_FROM else 1
        title = f"scanning masks of {list_file.name}"
        found = run_all(count_classes, [root / name for name in todo], title, workers, "masks")
        counts |= dict(zip(todo, found, strict=True))
        _write_cache(cache_file, stamps, counts)
    return counts


def _stamp(path: str, list_file: Path) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        raise UserError(f"{path}: no such mask, named in {list_file}; check the list and data_root") from None
    return max(status.st_mtime_ns, status.st_ctime_ns), status.st_size  # a copy may keep the first


def counts_folder() -> Path:
    """Where the counts of all lists are kept, a file for each."""
    return user_cache() / "masks"


def _read_cache(file: Path) -> dict[str, tuple[Stamp, Counts]]:
    """Mask -> (stamp, counts); a cache that is absent, broken or of another version is as good as empty."""
    try:
        content = json.loads(file.read_text())
        if content["version"] != CACHE_VERSION:
            return {}
        return {
            name: ((mtime, size), {int(value): count for value, count in counts.items()})
            for name, (mtime, size, counts) in content["masks"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_cache(file: Path, stamps: dict[str, Stamp], counts: dict[str, Counts]) -> None:
    """Keep the counts; where the folder cannot be written to they are only counted again next time."""
    content = json.dumps({"version": CACHE_VERSION, "masks": {name: [*stamps[name], counts[name]] for name in stamps}})
    is_first = not file.parent.exists()
    try:
        atomic_write(file, content)
    except OSError as error:
        reason = error.strerror or error
        logger.warning("%s: cannot be written (%s); masks will be scanned again next time", file.parent, reason)
    else:
        if is_first:
            tqdm.write(f"what the masks hold is kept in {file.parent}; `python -m tools.cache` shows it", sys.stderr)

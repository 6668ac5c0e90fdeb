"""Counts the classes of every mask of a list once, in parallel, and remembers the counts beside the data set."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from dataset.reading import count_classes
from util.errors import UserError
from util.files import atomic_write

Stamp = tuple[int, int]  # modification time in nanoseconds, size in bytes
Counts = dict[int, int]  # class -> number of pixels

CACHE_VERSION = 1
CACHE_FOLDER = ".hmnet_cache"
POOL_FROM = 2000  # fewer masks than this are counted before a pool of processes has started

logger = logging.getLogger(__name__)


def scan_masks(root: Path, masks: Sequence[str], list_file: Path) -> dict[str, Counts]:
    """Class -> pixels of every mask (paths relative to root); only masks that are new or changed are read.

    The counts know nothing of folds or thresholds, so one scan serves all. UserError names a missing or broken mask.
    """
    stamps = {name: _stamp(os.path.join(root, name), list_file) for name in masks}  # pathlib takes 10 times as long
    counts: dict[str, Counts] = {}
    cache_files = _cache_files(root, list_file)
    for file in cache_files:
        counts |= {name: count for name, (stamp, count) in _read_cache(file).items() if stamps.get(name) == stamp}
    todo = [name for name in stamps if name not in counts]
    if todo:
        progress = tqdm(
            _count_all([root / name for name in todo]), f"scanning masks of {list_file.name}", len(todo), delay=1
        )
        counts |= dict(zip(todo, progress, strict=True))
        _write_cache(cache_files, stamps, counts)
    return counts


def _count_all(paths: list[Path]) -> Iterator[Counts]:
    if len(paths) < POOL_FROM:
        yield from map(count_classes, paths)
        return
    with ProcessPoolExecutor() as pool:
        yield from pool.map(count_classes, paths, chunksize=64)


def _stamp(path: str, list_file: Path) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        raise UserError(f"{path}: no such mask, named in {list_file}; check the list and data_root") from None
    return status.st_mtime_ns, status.st_size


def _cache_files(root: Path, list_file: Path) -> list[Path]:
    """Where the counts of a list may lie: beside the data, or with the user where the data is read-only."""
    name = f"{list_file.stem}-{_digest(list_file)}.json"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return [root / CACHE_FOLDER / name, user_cache / "hmnet" / _digest(root) / name]


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:10]


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


def _write_cache(files: Sequence[Path], stamps: dict[str, Stamp], counts: dict[str, Counts]) -> None:
    """Write to the first place that takes it."""
    content = json.dumps({"version": CACHE_VERSION, "masks": {name: [*stamps[name], counts[name]] for name in stamps}})
    for file in files:
        try:
            atomic_write(file, content)
            return
        except OSError as error:
            logger.debug("no cache in %s: %s", file.parent, error)
    folders = " or ".join(str(file.parent) for file in files)
    logger.warning("cannot remember the mask scan in %s; it will be repeated next time", folders)

"""What a run has to do: the images of its share that the manifest does not have yet."""

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.lists import class_lines
from prediction.manifest import NAME, Record, join, part_files, part_path, scan
from prediction.outputs import FOLDERS, Outputs, is_done
from prediction.queries import Queries, Share
from prediction.settings import SETTINGS, contents_of, is_ours, read_settings, write_settings
from prediction.support import SupportClass
from util.errors import UserError
from util.files import LOCK, atomic_write, claimed, locked, own_name, remove_temporary

WHOLE = Share(1, 1)
PATIENCE = 600  # seconds that one of many processes waits while others begin


@dataclass(frozen=True)
class PredictionPlan:
    """What one process has to do."""

    support: Sequence[SupportClass]
    queries: Queries
    share: Share
    outputs: Outputs
    left: Sequence[str]  # of the files of the queries
    stale: Sequence[Record]  # of files in the share whose outputs are called otherwise now

    @property
    def values(self) -> dict[str, int]:
        """By which masks mark each class."""
        return {item.name: item.value for item in self.support}


@contextmanager
def claim_share(folder: Path, share: Share) -> Iterator[None]:
    """Keep a folder, or a share of what is written to it, for this process.

    UserError while another one has it, and where parts of another number are not joined yet.
    """
    if share == WHOLE:
        with claimed(folder, is_ours):
            for lock in folder.glob(f"{LOCK}.*of*"):
                with locked(folder, lock.name, "give another --out"):
                    pass  # nobody is at work on this part
            yield
        return
    if others := {other.total for other in part_files(folder)} - {share.total}:
        count = others.pop()
        raise UserError(f"{folder}: holds parts of {count}; go on with --part NUMBER/{count}, or join them by --finish")
    with locked(folder, f"{LOCK}.{share.number}of{share.total}", "give another --part"):
        yield


def is_current(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether a folder holds results of these settings; UserError for those of others, unless they may go."""
    stored = read_settings(folder)
    if all(stored.get(key) == value for key, value in settings.items()):
        return True
    if (folder / SETTINGS).exists() and not overwrite:
        raise UserError(
            f"{folder}: holds what other weights, settings, supports or query folders gave; "
            "give another --out, or --overwrite"
        )
    return False


def make_plan(
    support: Sequence[SupportClass],
    queries: Queries,
    share: Share,
    outputs: Outputs,
    is_known: bool,
    overwrite: bool = False,
    verify: bool = False,
) -> PredictionPlan:
    """See which files of a share are left to do, writing nothing.

    Without `overwrite`, and where what lies there `is_known` to be of the same settings, those count as done that are
    in the manifest and whose size in bytes has not changed. `verify` reads these files and their outputs.
    """
    files = [file for file in queries.files if share.has(file)]
    done, stale, root = bytearray(len(files)), dict[str, Record](), os.path.join(queries.root, "")
    parts = part_files(outputs.folder)
    own = [path for other, path in parts.items() if share == WHOLE or other == share]
    for path in (outputs.folder / NAME, *own) if is_known else ():
        for group in scan(path):
            number, record = bisect_left(files, group.file), group.records[0]
            if files[number : number + 1] != [group.file]:
                continue
            paths = outputs.paths(group.file)
            done[number] = not overwrite and is_done(paths, record)
            if record.get("mask") != paths["mask"]:
                stale[group.file] = record
            elif done[number]:
                done[number] = _is_unchanged(root + group.file, record)
                done[number] &= not verify or _is_verified(queries.root / group.file, group.records, outputs)
    left = [file for file, known in zip(files, done, strict=True) if not known]
    return PredictionPlan(support, queries, share, outputs, left, list(stale.values()))


def _is_unchanged(path: str, record: Record) -> bool:
    """Whether an image has as many bytes as it had; one that is gone counts as done."""
    try:
        return record.get("bytes") in (None, os.stat(path).st_size)
    except OSError:
        return True


def _is_verified(path: Path, records: Sequence[Record], outputs: Outputs) -> bool:
    return contents_of(path).get("digest") in (None, records[0].get("digest")) and outputs.is_whole(records)


def begin(plan: PredictionPlan, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Write down what a run is about, and remove what is stale, before the first image.

    UserError where results of other settings have been written there meanwhile.
    """
    folder = plan.outputs.folder
    if not is_current(folder, settings, overwrite):
        for path in (folder / NAME, *part_files(folder).values()):
            path.unlink(missing_ok=True)
        write_settings(folder, settings)
    atomic_write(folder / "classes.txt", class_lines({item.value: item.name for item in plan.support}))
    own = part_path(folder, plan.share)
    if own.exists() or plan.share == WHOLE:
        _remove_half_written(plan)
    if overwrite:
        own.unlink(missing_ok=True)
    if plan.share == WHOLE:
        if set(part_files(folder).values()) - {own}:
            join(folder)
        for name in (SETTINGS, NAME, "classes.txt", "index.html"):
            remove_temporary(folder, name)
    if plan.stale:
        _remove_stale(plan)


def _remove_stale(plan: PredictionPlan) -> None:
    """Remove outputs that are called otherwise now."""
    outputs = plan.outputs
    current = {path for file in plan.queries.files for path in outputs.paths(file).values()}
    for path in {record.get(kind, "") for record in plan.stale for kind in FOLDERS}:
        if path not in current and path == own_name(path) and path.partition("/")[0] in FOLDERS.values():
            (outputs.folder / path).unlink(missing_ok=True)


def _remove_half_written(plan: PredictionPlan) -> None:
    """Remove what an earlier run of this share was writing when it was killed."""
    outputs, found = plan.outputs, dict[str, list[Path]]()
    for kind in FOLDERS.values():
        for path in (outputs.folder / kind).rglob(".*.tmp"):
            target = path.with_name(path.name[1:].rsplit(".", 2)[0])
            found.setdefault(str(target.relative_to(outputs.folder)), []).append(path)
    for file in plan.left if found else ():
        for target in outputs.paths(file).values():
            for path in found.get(target, ()):
                path.unlink(missing_ok=True)

"""A run's claim on its files: one training at a time, and none that is there is replaced unless somebody says so."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.paths import Paths
from engine.snapshot import snapshots
from util.checkpoint import read_checkpoint
from util.config import Config, load_config
from util.distributed import ProcessGroup
from util.errors import UserError
from util.files import locked
from util.schema import keys_of, topics_of

ELSEWHERE = "choose another folder by `--opts exp FOLDER`"
AT_ANY_TIME = ("amp",)  # of the network's keys: precision may change in the middle of a training


@contextmanager
def claimed_run(
    cfg: Config, paths: Paths, process_group: ProcessGroup, overwrite: bool, topics: Sequence[str]
) -> Iterator[None]:
    """Within the block the files of a run are its own; `topics` say which keys make it what it is.

    UserError, with nothing changed, while another run is writing them, and where they are those of a training that is
    not to be resumed; `overwrite` removes that one.
    """
    if not process_group.is_main:
        yield
        return
    if overwrite and cfg.resume:
        raise UserError(f"--overwrite: removes what resume {cfg.resume} goes on from; leave out one of them")
    with locked(paths.folder, f".lock{paths.tag}", ELSEWHERE):
        if overwrite:
            _remove(paths)
        else:
            _check(cfg, paths, keys_of(*topics))
        yield


def _check(cfg: Config, paths: Paths, keys: Sequence[str]) -> None:
    """UserError that names what differs from the training whose files are there, where it is not to be resumed."""
    states = snapshots(paths.snapshots, paths.snapshot_name)
    if not states and not paths.best.is_file():
        return
    place = paths.folder if states else paths.best
    changed = _differences(cfg, paths, keys)
    if not _resumes_here(cfg, paths) or not states:
        other = f"another training: {', '.join(changed.values())}" if changed else "a training already"
        resume = ", go on with it by `--opts resume auto`" if states else ""
        raise UserError(f"{place}: holds {other}; {ELSEWHERE}{resume}, or remove it by --overwrite")
    network = [text for key, text in changed.items() if topics_of(key)[0] == "network" and key not in AT_ANY_TIME]
    if network:
        raise UserError(
            f"{place}: holds another network, which cannot be resumed: {', '.join(network)}; {ELSEWHERE}, "
            "or remove it by --overwrite without resume"
        )


def _resumes_here(cfg: Config, paths: Paths) -> bool:
    return cfg.resume == "auto" or (
        cfg.resume is not None and Path(cfg.resume).resolve().parent == paths.snapshots.resolve()
    )


def _differences(cfg: Config, paths: Paths, keys: Sequence[str]) -> dict[str, str]:
    """By key, how the config that lies there differs; empty where none can be read."""
    try:
        there = load_config(paths.file("config.yaml"))
    except UserError:
        return {}
    pairs = {key: (getattr(there, key), getattr(cfg, key)) for key in keys}
    return {key: f"{key} {old!r}, not {new!r}" for key, (old, new) in pairs.items() if old != new}


def _remove(paths: Paths) -> None:
    """Remove the run that is there: states, best weights under both their names, figures, curves."""
    if paths.best.is_file() and paths.numbered:
        try:
            best = read_checkpoint(paths.best)
            paths.numbered_best(best["epoch"], best["miou"]).unlink(missing_ok=True)
        except (UserError, KeyError, TypeError, ValueError):
            pass  # no weights of ours, so they have no second name
    for path in snapshots(paths.snapshots, paths.snapshot_name).values():
        path.unlink(missing_ok=True)
    for path in (paths.best, paths.file("result.json"), paths.file("config.yaml")):
        path.unlink(missing_ok=True)
    shutil.rmtree(paths.file("tensorboard"), ignore_errors=True)

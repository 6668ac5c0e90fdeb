"""Snapshots: the whole state of a run, to go on from; and the signals that ask a run to write one and leave."""

import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from util.checkpoint import read_checkpoint, save_checkpoint
from util.errors import UserError

SAVED_EXIT = 75  # sysexits.h EX_TEMPFAIL: nothing is lost, run again
PARTS = ("state_dict", "optimizers", "scaler", "progress", "world", "config")


def snapshots(folder: Path, name: str) -> dict[tuple[int, int], Path]:
    """The files `{name}_{epoch}_{step}.pth` of a folder by position, earliest first."""
    pattern = re.compile(rf"{re.escape(name)}_(\d+)_(\d+)\.pth")
    found = [(match, path) for path in folder.glob("*.pth") if (match := pattern.fullmatch(path.name))]
    return dict(sorted(((int(match[1]), int(match[2])), path) for match, path in found))


def write_snapshot(folder: Path, name: str, epoch: int, step: int, content: Mapping[str, Any], keep: int) -> Path:
    """Write the snapshot of a position; of the others the `keep` - 1 before it stay, those of a later position go.

    Later ones are from an earlier run, or damaged. UserError where the disk refuses.
    """
    path = folder / f"{name}_{epoch:04d}_{step:06d}.pth"
    save_checkpoint(path, content)
    known = snapshots(folder, name)
    before = [old for position, old in known.items() if position <= (epoch, step)]
    for old in known.values():
        if old not in before[-keep:]:
            old.unlink(missing_ok=True)
    return path


def read_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot; UserError when it is missing, damaged, or a checkpoint of weights alone."""
    content = read_checkpoint(path)
    if missing := [part for part in PARTS if part not in content]:
        raise UserError(f"{path}: no snapshot of a run, it lacks {', '.join(missing)}; give a state_*.pth to resume")
    return content


def newest_intact(folder: Path, name: str, warn: Callable[[str], None]) -> Path | None:
    """The newest snapshot of a folder that can be read, None where there is none; `warn` hears of damaged ones."""
    for path in reversed(snapshots(folder, name).values()):
        try:
            read_snapshot(path)
        except UserError as error:
            warn(f"skipped {error}")
        else:
            return path
    return None


class StopWaiting(BaseException):
    """A signal has come while nothing was half-done; no `except Exception` may stop it."""


class StopRequest:
    """Whether a signal has asked the run to stop; a second Ctrl-C does not wait.

    Where nothing is half-done, `waiting`, a signal raises StopWaiting: at once with patience 0, else after so many
    seconds, within which the processes of a run should agree to stop.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.is_waiting = patience, False
        self.received: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT is signal.Signals(number):
            raise KeyboardInterrupt
        if number != signal.SIGALRM:
            self.received = signal.Signals(number)
        if self.is_waiting and (number == signal.SIGALRM or not self.patience):
            raise StopWaiting
        signal.alarm(self.patience)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block nothing is half-done."""
        if self.received and not self.patience:  # since the last look at it
            raise StopWaiting
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = False


@contextmanager
def noting_signals(patience: int = 0) -> Iterator[StopRequest]:
    """Within the block SIGTERM, SIGINT and SIGUSR1 (Slurm's early warning) are noted instead of obeyed."""
    request = StopRequest(patience)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)
    previous = {number: signal.signal(number, request) for number in numbers}
    try:
        yield request
    finally:
        signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)

"""What a run reports: lines on the console and in its log file, curves in TensorBoard."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.contrib.logging import logging_redirect_tqdm


class FileHandler(logging.FileHandler):
    """Does not go on when the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class RunLog:
    """Console, `log` file (appended to) and, given a folder for it, TensorBoard; silent unless `enabled`."""

    def __init__(self, path: Path, board: Path | None = None, enabled: bool = True) -> None:
        self.logger = logging.Logger(path.name)  # its own, not one of the process: several runs may follow each other
        self.board, self.open = None, ExitStack()
        if not enabled:
            self.logger.disabled = True
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for handler in (logging.StreamHandler(sys.stdout), FileHandler(path, encoding="utf-8")):
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            self.logger.addHandler(handler)
            self.open.callback(handler.close)
        self.open.enter_context(logging_redirect_tqdm([self.logger]))  # lines above a progress bar, not through it
        if board:
            from tensorboardX import SummaryWriter  # half a second that only --viz needs

            self.board = self.open.enter_context(SummaryWriter(str(board)))

    def info(self, line: str) -> None:
        """A line of news."""
        self.logger.info(line)

    def warning(self, line: str) -> None:
        """A line that deserves a look."""
        self.logger.warning(line)

    def curves(self, values: Mapping[str, float], step: int) -> None:
        """One point on each TensorBoard curve."""
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def image(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """An image (h, w, 3) in TensorBoard."""
        if self.board:
            self.board.add_image(name, image, step, dataformats="HWC")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close all files."""
        self.open.close()


class Clock:
    """Rate and time left of a run, from what this process has done since it started."""

    def __init__(self) -> None:
        self.start, self.done = time.monotonic(), 0
        self.validated, self.validation_seconds = 0, 0.0

    def tick(self) -> None:
        """One more step is done."""
        self.done += 1

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Within the block time is a validation's."""
        start = time.monotonic()
        yield
        self.validated += 1
        self.validation_seconds += time.monotonic() - start

    @property
    def rate(self) -> float:
        """Steps per second, without validation."""
        return self.done / max(time.monotonic() - self.start - self.validation_seconds, 1e-9)

    def left(self, steps: int, validations: int = 0) -> str:
        """Time that so many steps and validations will take, as 1d 02:03:04; says so while none has been timed."""
        seconds = steps / self.rate if self.done else 0.0
        seconds += validations * self.validation_seconds / max(self.validated, 1)
        days, rest = divmod(round(seconds), 86400)
        text = (f"{days}d " if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))
        if not validations or self.validated:
            return text
        return f"{text} plus {validations} validation{'s' * (validations > 1)}"

"""Mistakes of the user, reported in one line."""

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

READER_LEFT = 141  # 128 + SIGPIPE, as shells say it


class UserError(ValueError):
    """A mistake that the user can correct: the message names the file, key or class and the remedy in one line."""


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit with its code (None is 0); a UserError is one line on stderr and code 2.

    Output whose reader has left, as in `... | head`, ends the program quietly with code 141.
    """
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        if not _reader_left():
            raise
        code = READER_LEFT
    sys.exit(code)


def _reader_left() -> bool:
    """Whether it is standard output that nobody reads; what was still to be written is then dropped."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)  # errors are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True

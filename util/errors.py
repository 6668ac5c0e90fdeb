"""Mistakes of the user, reported in one line."""

import errno
import io
import os
import re
import select
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

READER_LEFT = 141  # 128 + SIGPIPE, as shells say it


class UserError(ValueError):
    """A mistake that the user can correct: the message names the file, key or class and the remedy in one line."""


def printable(text: str) -> str:
    """The text in one line that any terminal can be sent: control characters, line ends and the like are escaped."""
    return re.sub(r"[^ -~]", lambda char: char[0] if char[0].isprintable() else ascii(char[0])[1:-1], text)


def first_line(error: Exception) -> str:
    """What an error of another package says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit with its code (None is 0); a UserError is one line on stderr and code 2.

    So is a warning, without the code. Letters that the terminal does not have are escaped. Output whose reader has
    left, as in `... | head`, ends the program quietly with code 141; to closed streams nothing is said. Of Ctrl-C
    one word is said, and the process ends by SIGINT.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`; the file takes its number, which no other should get
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.excepthook = lambda *_: None  # Python then ends itself by SIGINT, at which a shell stops its loop
        raise
    except BrokenPipeError:
        if not _reader_left():
            raise
        code = READER_LEFT
    except OSError as error:  # of a file that cannot be written: a full disk, missing rights, a file for a folder
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = printable(f"{error.filename or 'cannot write'}: {error.strerror}")
        print(f"error: {where}; fix that and run again", file=sys.stderr)
        code = 2
    sys.exit(code)


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {printable(str(message))}", file=sys.stderr)


def _reader_left() -> bool:
    """Whether it is standard output that nobody reads; what was still to be written is then dropped."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)  # errors are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True

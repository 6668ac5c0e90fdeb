"""Failures of the machine, reported in one line: dead processes and workers, full disks, full memory."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch
import torch.distributed as dist

from util.errors import UserError

RESUME = "start again with `--opts resume auto` to go on from the last checkpoint"


@contextmanager
def explain_errors(again: str = RESUME) -> Iterator[None]:
    """Turn what goes wrong in loader workers, between processes and on the machine into a UserError of one line.

    `again` says how to go on afterwards.
    """
    try:
        yield
    except (UserError, RuntimeError, OSError, MemoryError, cv2.error) as error:
        line = explain(error, again)
        if line is None:
            raise
        raise UserError(line) from error


def explain(error: Exception, again: str = RESUME) -> str | None:
    """The line that says what happened and what to do, or None for an error of the program itself."""
    text = str(error)
    if isinstance(error, UserError):  # a loader worker hands over its whole traceback
        return text.rpartition("UserError: ")[2].strip()
    first = re.sub(r"^OpenCV.* error: ", "", text.strip().split("\n")[0])
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        known = full or error.filename is not None
        remedy = "make room and" if full else "fix that, then"
        return f"{error.filename or 'cannot write'}: {error.strerror}; {remedy} {again}" if known else None
    if isinstance(error, torch.OutOfMemoryError):
        return f"{first}; lower batch_size (and raise accumulate), or set checkpoint_blocks or amp"
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "Insufficient memory" in text:
        return f"not enough memory for images of this size: {first or 'out of memory'}; reduce them, and {again}"
    if "DataLoader worker" in text:
        return f"a loader worker died, perhaps for lack of memory: {first}; lower loader_workers (0: none) and {again}"
    if isinstance(error, dist.DistError) or "gloo" in text.lower() or "Connection closed by peer" in text:
        reason = re.sub(r"^\[\S+\] ", "", first).split(". ")[0]  # without gloo's source line and advice
        return f"lost contact with another process, whose own message says why: {reason}; {again}"
    return None

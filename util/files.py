"""Writing files so that a reader never sees half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """A temporary neighbour of `path` to write to, renamed over it when the block ends well, else removed.

    Missing folders are made. Only a kill leaves the neighbour behind; `remove_temporary` clears it away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write all of a file, or leave it as it was."""
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def remove_temporary(folder: Path, pattern: str) -> None:
    """Remove what killed processes had begun to write for files of these names."""
    for path in folder.glob(f".{pattern}.*.tmp"):
        path.unlink(missing_ok=True)

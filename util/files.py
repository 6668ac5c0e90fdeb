"""Files: read as text, written so that a reader never sees half of one, in folders that are ours to write to."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from util.errors import UserError

LOCK = ".lock"
LONGEST = 120  # bytes of a part of a path of ours; file systems take 255
KEPT = 400_000  # digests of files, so many as images and masks of COCO, 400 bytes each
PASSING = re.compile(rf"{re.escape(LOCK)}|\..+\.\d+\.tmp$")  # locks, and what is half-written
PLAIN = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*", re.ASCII)  # a name to which nothing has to be done


def read_text(path: Path, kind: str) -> str:
    """The text of a file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    UserError when there is no such file, which `kind` says what it is, or it is something else.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: no readable {kind} there ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no readable {kind}, not UTF-8 text ({error.reason}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def numbered_lines(path: Path, kind: str) -> list[tuple[int, str]]:
    """Number, as editors count, and text of the lines that are not blank; UserError as in `read_text`."""
    lines = enumerate(read_text(path, kind).split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def own_name(stated: str) -> str:
    """A path of ours below a folder for what others call a file: it leads nowhere else, hides nothing and can be typed.

    Steps up, roots and empty parts go; control characters and leading dots become underscores; long parts are cut.
    """
    if len(stated) <= LONGEST and PLAIN.fullmatch(stated):
        return stated
    parts = []
    for part in re.split(r"[/\\]", stated):
        clean = "".join(char if char.isprintable() else "_" for char in part).strip()
        if clean.strip(". "):
            parts.append(re.sub(r"^\.", "_", clean))
            if len(clean.encode()) > LONGEST:
                cut = clean.encode()[: LONGEST - 9].decode(errors="ignore")
                parts[-1] = f"{cut}_{hashlib.sha256(clean.encode()).hexdigest()[:8]}"
    return "/".join(parts) or "_"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, computed again only when it has changed."""
    stat = path.stat()
    return _file_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(KEPT)
def _file_digest(path: Path, _size: int, _time: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def claimed(folder: Path, is_marker: Callable[[Path], bool], timeout: float = 0) -> Iterator[None]:
    """Keep a folder for the files of one run of this program.

    UserError for a folder that holds something and no file that `is_marker` knows as ours, and while another run is
    writing to it, for longer than `timeout` seconds.
    """
    there = [path for path in folder.iterdir() if not PASSING.match(path.name)] if folder.is_dir() else []
    if there and not any(is_marker(path) for path in there):
        raise UserError(f"{folder}: holds {there[0].name}, which this program did not write; give another --out")
    with locked(folder, LOCK, "give another --out", timeout):
        yield


@contextmanager
def locked(folder: Path, name: str, remedy: str, timeout: float = 0) -> Iterator[None]:
    """Within the block no other process holds the folder's lock of this name; UserError where one does.

    Waits for it for `timeout` seconds.

    The lock's file is there as long as it is held; a folder that was made for it and stays empty goes with it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise UserError(f"{folder}: another run is writing to it; wait for its end, or {remedy}") from None
    try:
        yield
    finally:
        # Removed while it is held: whoever has opened it already gets no lock, as filelock sees that it is gone.
        (folder / name).unlink(missing_ok=True)
        lock.release()
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def user_cache() -> Path:
    """The folder of what this program can make again: XDG_CACHE_HOME/hmnet, or ~/.cache/hmnet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hmnet")


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """A temporary neighbour of `path` to write to, renamed over it when the block ends well, else removed.

    Missing folders are made. Only a kill leaves the neighbour behind; `remove_temporary` clears it away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # the file that the user knows
        raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write all of a file, or leave it as it was."""
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def remove_temporary(folder: Path, pattern: str) -> None:
    """Remove what killed processes had begun to write for files of these names."""
    for path in folder.glob(f".{pattern}.*.tmp"):
        if re.search(r"\.\d+\.tmp$", path.name):
            path.unlink(missing_ok=True)

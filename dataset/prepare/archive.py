"""The official archives: where they come from, and unpacking what is needed of them, once."""

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EINVAL
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from dataset.prepare.download import download, verify_checksum
from util.errors import UserError, first_line
from util.files import atomic_open, atomic_write

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz")
COPIED = 1 << 20  # bytes at a time
LARGEST = 50, 1 << 30  # what is unpacked may be so many times the archive, and so many bytes more


@dataclass(frozen=True)
class Archive:
    """An official archive: its address, its MD5 sum where one is published, and what of it is needed.

    `inside` is the folder in the archive that becomes the target folder; `wanted` are the folders and files below it.
    """

    url: str
    md5: str | None
    inside: str
    wanted: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """Where archives are taken from: a folder, filled by download (from `mirror`, if given) where allowed."""

    archives: Path
    download: bool = False
    mirror: str | None = None
    checksum: bool = True


def unpack(archive: Archive, source: Source, target: Path, records: Path) -> None:
    """Bring the wanted files of an archive into `target`, unless they are there; what is missing or half is redone.

    Names and sizes of what was unpacked are recorded in the folder `records`, so that a second run need not open the
    archive, nor have it. Without a record and without an archive the files in `target` are taken as they are, if there
    are any. Raises UserError naming the archive when it is missing, damaged or unsafe.
    """
    record = records / f"{archive.name}.json"
    if record.is_file() and not (lost := _lost_files(record, target)):
        return
    path = source.archives / archive.name
    if not path.is_file() and source.download:
        url = f"{source.mirror.rstrip('/')}/{archive.name}" if source.mirror else archive.url
        download(url, path)
    if not path.is_file():
        if record.is_file():
            raise UserError(f"{target / lost[0]} and {len(lost) - 1} more are missing or cut short; {_where(path)}")
        if all((target / wanted).exists() for wanted in archive.wanted):
            print(f"{archive.name} is not at hand: taking what is in {target}")
            return
        raise UserError(f"{path} is missing; {_where(path)}")
    if archive.md5 and source.checksum:
        verify_checksum(path, archive.md5)
    sizes = _extract_wanted(path, archive, target)
    atomic_write(record, json.dumps(sizes, indent=0))


def _where(path: Path) -> str:
    return f"put {path.name} into {path.parent}, or give --archives DIR or --download"


def _lost_files(record: Path, target: Path) -> list[str]:
    try:
        sizes = json.loads(record.read_text())
    except ValueError:
        raise UserError(f"{record} is damaged; delete it and run again") from None
    return [name for name, size in sizes.items() if not _is_complete(target / name, size)]


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def extract(path: Path, destination: Callable[[str], Path | None], replace: bool = True) -> dict[Path, int]:
    """Extract what `destination` gives a path by its name in a tar or zip archive; return the size of each.

    A file that is there with its full size stays as it is, and so does any other unless `replace`. Each is written
    whole or not at all, and of an archive that turns out to be damaged nothing is kept; UserError then names it.
    """
    sizes: dict[Path, int] = {}
    written: list[Path] = []
    room = LARGEST[0] * path.stat().st_size + LARGEST[1]
    try:
        with tqdm(desc=f"unpack {path.name}", unit="file", mininterval=0.5) as progress:
            for member, size, opened in _members(path):
                if ".." in PurePosixPath(member).parts:
                    raise tarfile.TarError(f"the member {member} leaves the archive's folder")
                file = destination(member)
                if file is None or file in sizes:
                    continue
                room -= size
                if room < 0:
                    raise tarfile.TarError(f"with {member} it unpacks to far more than an archive of its size should")
                if not _is_complete(file, size) and (replace or not os.path.lexists(file)):
                    with opened() as content, atomic_open(file) as copy:
                        shutil.copyfileobj(content, copy, COPIED)
                    written.append(file)
                sizes[file] = size
                progress.update()
    except UserError:
        raise
    except Exception as error:  # a damaged archive makes the readers fail in any way there is
        if isinstance(error, OSError) and error.errno not in (None, EINVAL):
            raise  # a full disk, say: not the archive's fault
        for file in written:
            file.unlink()
        said = first_line(error).rstrip(":")
        raise UserError(f"{path} is damaged or unsafe: {said}; delete it and fetch it again") from None
    return sizes


def _extract_wanted(path: Path, archive: Archive, target: Path) -> dict[str, int]:
    """Extract the wanted files below `target` and return their sizes; UserError where the archive lacks some."""
    files = extract(path, lambda member: _destination(member, archive, target))
    sizes = {file.relative_to(target).as_posix(): size for file, size in files.items()}
    for wanted in archive.wanted:
        if not any(PurePosixPath(name).is_relative_to(wanted) for name in sizes):
            lacking = PurePosixPath(archive.inside, wanted)
            raise UserError(f"{path} has no {lacking}: not the official archive, or cut short")
    return sizes


def _destination(member: str, archive: Archive, target: Path) -> Path | None:
    """Where a member belongs, if it is one that is wanted."""
    path = PurePosixPath(member)
    if not path.is_relative_to(archive.inside):
        return None
    name = path.relative_to(archive.inside)
    return target / name if any(name.is_relative_to(wanted) for wanted in archive.wanted) else None


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """The files of a tar or zip archive: name, size in bytes, and a function that opens it; links are passed over."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            for entry in zipped.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, partial(zipped.open, entry)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, member.size, partial(_opened_member, archive, member)
            while archive.fileobj and archive.fileobj.read(COPIED):  # to the end, where gzip compares its checksum
                pass


def _opened_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content  # a regular file
    return content

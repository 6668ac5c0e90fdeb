"""The official archives: where they come from, and unpacking what is needed of them, once."""

import json
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from errno import EINVAL
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from dataset.lists import Pair
from dataset.prepare.download import download, verify_checksum
from dataset.prepare.files import raise_if_any, write_lists
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
    wanted = "|".join(map(re.escape, archive.wanted))
    place = by_pattern(target, re.escape(f"{archive.inside}/" if archive.inside else "") + rf"((?:{wanted})(?:/.*)?)")
    sizes = {file.relative_to(target).as_posix(): size for file, size in extract(path, place).items()}
    for part in archive.wanted:
        if not any(PurePosixPath(name).is_relative_to(part) for name in sizes):
            raise UserError(
                f"{path} has no {PurePosixPath(archive.inside, part)}: not the official archive, or cut short"
            )
    atomic_write(record, json.dumps(sizes, indent=0))


def by_pattern(target: Path, pattern: str) -> Callable[[str], Path | None]:
    """For `extract`: a member of this pattern goes below `target`, as its first group says."""

    def destination(member: str) -> Path | None:
        match = re.fullmatch(pattern, str(PurePosixPath(member)))
        return target / match[1] if match else None

    return destination


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
                    content = opened()
                    assert content  # a regular file
                    with content, atomic_open(file) as copy:
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


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes] | None]]]:
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
                    yield member.name, member.size, partial(archive.extractfile, member)
            while archive.fileobj and archive.fileobj.read(COPIED):  # to the end, where gzip compares its checksum
                pass


def unpack_prepared(
    source: Source, official: Sequence[Archive], root: Path, layout: str, masks: str, raw: Sequence[str]
) -> bool:
    """Unpack archives of prepared data, of whatever name, into `root`; return whether `root` then is such data.

    That is only asked where nothing is to be downloaded, no official archive is at hand, and `root` holds none of the
    `raw` annotations but some of the `masks`. Of the archives the files of `layout`, a pattern of their paths below
    `root`, are taken at any depth. What is there stays as it is. Raises UserError for a damaged or unsafe archive.
    """
    at_hand = any((source.archives / archive.name).is_file() for archive in official)
    if source.download or at_hand or any((root / name).exists() for name in raw):
        return False
    for path in sorted(source.archives.glob("*")):
        if path.name.endswith(SUFFIXES):
            extract(path, by_pattern(root, rf"(?:.*/)?({layout})"), replace=False)
    return next(root.glob(masks), None) is not None


def write_prepared(root: Path, lists: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    """Write the lists of prepared data; UserError, with nothing written, where an image or mask is missing."""
    files = [root / name for pairs in lists.values() for pair in pairs for name in pair]
    raise_if_any([f"{file} is missing" for file in files if not file.is_file()], "images and masks")
    write_lists(root, lists)
    return lists

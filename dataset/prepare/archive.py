"""The official archives: where they come from, and unpacking what is needed of them, once."""

import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from dataset.prepare.download import download, verify_checksum
from util.errors import UserError
from util.files import atomic_write

Extract = Callable[[Path], Path]


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
    sizes = _extract_all(path, archive, target)
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


def _extract_all(path: Path, archive: Archive, target: Path) -> dict[str, int]:
    """Extract the wanted files that `target` lacks, each aside and renamed; return the sizes of all wanted ones.

    Of an archive that turns out to be damaged nothing is kept.
    """
    sizes: dict[str, int] = {}
    written: list[Path] = []
    aside = target / ".unpack"
    try:
        with tqdm(desc=f"unpack {archive.name}", unit="file", mininterval=0.5) as progress:
            for member, size, extract in _members(path):
                name = _wanted_name(member, archive)
                if name is None:
                    continue
                destination = target / name
                if not _is_complete(destination, size):
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    written.append(extract(aside).replace(destination))
                sizes[name] = size
                progress.update()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk, say: not the archive's fault
            raise
        for file in written:
            file.unlink()
        raise UserError(f"{path} is damaged or unsafe: {error}; delete it and fetch it again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for wanted in archive.wanted:
        if not any(PurePosixPath(name).is_relative_to(wanted) for name in sizes):
            lacking = PurePosixPath(archive.inside, wanted)
            raise UserError(f"{path} has no {lacking}: not the official archive, or cut short")
    return sizes


def _wanted_name(member: str, archive: Archive) -> str | None:
    """A member's path below the archive's folder, if it is one that is wanted."""
    path = PurePosixPath(member)
    if ".." in path.parts:
        raise tarfile.TarError(f"the member {member} leaves the archive's folder")
    if not path.is_relative_to(archive.inside):
        return None
    name = path.relative_to(archive.inside)
    return str(name) if any(name.is_relative_to(wanted) for wanted in archive.wanted) else None


def _members(path: Path) -> Iterator[tuple[str, int, Extract]]:
    """The files of a tar or zip archive: name, size in bytes, and a function that extracts it below a folder."""
    with _opened(path) as archive:
        if isinstance(archive, zipfile.ZipFile):
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, partial(_extract_entry, archive, entry)
        else:
            for member in archive:
                if member.isfile():
                    yield member.name, member.size, partial(_extract_member, archive, member)
            while archive.fileobj and archive.fileobj.read(1 << 20):  # to the end, where gzip compares its checksum
                pass


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with zipfile.ZipFile(path) if path.suffix == ".zip" else tarfile.open(path) as archive:
        yield archive


def _extract_member(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Path:
    archive.extract(member, folder, set_attrs=False, filter="data")
    return folder / member.name


def _extract_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> Path:
    return Path(archive.extract(entry, folder))

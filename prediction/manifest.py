"""What was predicted: JSON Lines in one file, and while processes are at work in a part for each of them.

A line is one class found in one image: `file`, `class`, `value` in the mask, `area` in pixels, `score`, `scores` of its
objects one by one (`prediction.objects`), `box` (left, top, right, bottom in pixels, the last two exclusive),
`seconds`, `found` (how many classes, so many lines there are of the file), `size` (height and width), `mask`, `overlay`
and `probability` (files, where they were asked for), `certainty` of the whole mask, `digest` (SHA-256 of the image's
file) and `bytes` (its size). Where nothing is found there is one line without a class.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError
from pydantic_core import from_json

from prediction.queries import Share
from util.files import atomic_open

NAME = "manifest.jsonl"
PART = re.compile(r"manifest\.part(\d+)of(\d+)\.jsonl")
LISTED = 5
TAIL = 2**20  # bytes at a part's end in which its last image is looked for; a line has some 300

Record = dict[str, Any]
Records = dict[str, list[Record]]  # by file, a record for every class found in it


class Line(BaseModel):
    """The types of a record's entries, as far as it has them; `file` may be a name in no known encoding."""

    found: NonNegativeInt
    name: str | None = Field(None, alias="class")
    value: Annotated[int, Field(ge=1, le=255)] | None = None
    area: NonNegativeInt = 0
    score: float = 0
    mask: str = ""
    overlay: str = ""
    probability: str = ""
    digest: str | None = None
    size: NonNegativeInt = Field(0, alias="bytes")


class Group(NamedTuple):
    """The records of one image, and where they lie in their file."""

    records: list[Record]
    start: int
    end: int

    @property
    def file(self) -> str:
        """The image."""
        return self.records[0]["file"]


class Part:
    """The lines of one process; a whole image's lines are written at once, behind those of an earlier run."""

    def __init__(self, folder: Path, share: Share) -> None:
        path = part_path(folder, share)
        if path.is_file():
            os.truncate(path, _complete_end(path))
        self.file = path.open("ab", buffering=0)

    def append(self, records: Sequence[Record]) -> None:
        """Add all records of one image."""
        data = _text(records).encode()
        while data:
            data = data[self.file.write(data) :]

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def scan(path: Path, start: int = 0) -> Iterator[Group]:
    """The images of a file whose lines are all there, in order, from a position on; torn lines do not count."""
    records: list[Record] = []
    if not path.is_file():
        return
    with path.open("rb") as file:
        position = file.seek(start)
        for line in file:
            before, position = position, position + len(line)
            if not (record := _record(line)):
                records = []
                continue
            if not records or records[0]["file"] != record["file"]:
                records, first = [], before
            records.append(record)
            if len(records) >= records[0]["found"]:
                yield Group(records, first, position)
                records = []


def part_path(folder: Path, share: Share) -> Path:
    """The part of a manifest that a share's lines go to."""
    return folder / f"manifest.part{share.number}of{share.total}.jsonl"


def part_files(folder: Path) -> dict[Share, Path]:
    """The parts of a manifest that were not yet joined."""
    found = {path: PART.fullmatch(path.name) for path in sorted(folder.glob("manifest.part*"))}
    return {Share(int(name[1]), int(name[2])): path for path, name in found.items() if name}


def read_manifest(folder: Path) -> Records:
    """The images whose lines are all there, in the manifest or in parts that a run left behind; parts win."""
    files = [folder / NAME, *part_files(folder).values()]
    groups = (group for path in files for group in scan(path))
    return {group.file: group.records for group in groups if all(map(_is_valid, group.records))}


class Joined(NamedTuple):
    """What a joined manifest holds."""

    files: Mapping[str, int]  # its images, whose order is that in which they were read
    found: Counter[str]  # images by the class found in them
    nothing: int  # images in which nothing is found
    least_sure: dict[str, float]  # the LISTED images of the lowest certainty


def join(folder: Path) -> Joined:
    """Join the manifest and its parts to one, sorted by file, every image once; parts win, and go in the end.

    In memory are the names of the images alone.
    """
    paths = [folder / NAME, *part_files(folder).values()]
    rows: dict[str, int] = {}
    places, starts, ends = array("l"), array("q"), array("q")
    kinds, kind_of, certainties = array("l"), dict[tuple[str, ...], int](), array("d")
    for place, path in enumerate(paths):
        for group in scan(path):
            classes = tuple(record["class"] for record in group.records if record["class"] is not None)
            rows[group.file] = len(places)
            certainty = group.records[0].get("certainty")
            certainties.append(certainty if isinstance(certainty, float) else 1.0)
            kinds.append(kind_of.setdefault(classes, len(kind_of)))
            for column, value in ((places, place), (starts, group.start), (ends, group.end)):
                column.append(value)
    if len(paths) > 1 or len(rows) < len(places) or not paths[0].is_file():
        order = (rows[file] for file in sorted(rows))
        _copy(folder / NAME, paths, ((places[row], starts[row], ends[row]) for row in order))
    for path in paths[1:]:
        path.unlink()
    images = Counter(kinds[row] for row in rows.values())
    by_classes = {classes: images[kind] for classes, kind in kind_of.items()}
    found = Counter[str]()
    for classes, count in by_classes.items():
        found.update(dict.fromkeys(classes, count))
    unsure = nsmallest(LISTED, ((certainties[row], file) for file, row in rows.items()))
    return Joined(rows, found, by_classes.get((), 0), {file: certainty for certainty, file in unsure if certainty < 1})


def _copy(target: Path, paths: Sequence[Path], pieces: Iterable[tuple[int, int, int]]) -> None:
    files = [path.open("rb") if path.is_file() else None for path in paths]
    with atomic_open(target) as joined:
        for place, start, end in pieces:
            if file := files[place]:
                file.seek(start)
                joined.write(file.read(end - start))
    for file in filter(None, files):
        file.close()


def _complete_end(path: Path) -> int:
    """Where the last image of a part ends whose lines are all there."""
    start = max(0, path.stat().st_size - TAIL)
    return max((group.end for group in scan(path, start)), default=start)


def _text(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _record(line: bytes) -> Record | None:
    """What a line holds; None where it is torn."""
    try:
        try:
            record = from_json(line)  # in a quarter of the time, but for names in no known encoding
        except ValueError:
            record = json.loads(line)
        name, found = record.get("class"), record["found"]
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return None
    is_whole = isinstance(record.get("file"), str) and type(found) is int and found >= 0 and line.endswith(b"\n")
    return record if is_whole and (name is None or isinstance(name, str)) else None


def _is_valid(record: Record) -> bool:
    try:
        Line.model_validate(record)
    except ValidationError:
        return False
    return True

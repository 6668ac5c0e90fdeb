"""What was predicted: JSON Lines in one file, and while processes are at work in a part for each of them.

A line is one class found in one image: `file`, `class`, `value` in the mask, `area` in pixels, `score`, `scores` of its
objects one by one (`prediction.objects`), `box` (left, top, right, bottom in pixels, the last two exclusive),
`seconds`, `found` (how many classes, so many lines there are of the file), `mask` and `overlay` (files), `digest`
(SHA-256 of the image's file). Where nothing is found there is one line without a class.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from util.files import atomic_write

NAME = "manifest.jsonl"
PARTS = "manifest.part*.jsonl"

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
    digest: str | None = None


class Part:
    """The lines of one process; a whole image's lines are written at once."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.file = (folder / PARTS.replace("*", str(rank))).open("ab", buffering=0)

    def append(self, records: Sequence[Record]) -> None:
        """Add all records of one image."""
        self.file.write(_text(records).encode())

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def read_manifest(folder: Path) -> Records:
    """The images whose lines are all there, in the manifest or in parts that a run left behind; parts win."""
    records: Records = {}
    for path in (folder / NAME, *sorted(folder.glob(PARTS))):
        if path.is_file():
            records |= _complete(_lines(path))
    return records


def write_manifest(folder: Path, records: Mapping[str, Sequence[Record]]) -> None:
    """Write the manifest, sorted by file, in place of what there is; its parts go."""
    atomic_write(folder / NAME, "".join(_text(records[file]) for file in sorted(records)))
    for part in folder.glob(PARTS):
        part.unlink()


def _text(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _lines(path: Path) -> Iterable[Record]:
    """The lines that are not torn."""
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            Line.model_validate(record)
        except (ValidationError, ValueError, RecursionError):
            continue
        if isinstance(record.get("file"), str):
            yield record


def _complete(records: Iterable[Record]) -> Records:
    groups: Records = {}
    for record in records:
        groups.setdefault(record["file"], []).append(record)
    return {file: group for file, group in groups.items() if len(group) == max(1, group[0]["found"])}

"""How every format is written: beside its place, and moved there when all images are done."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from prediction.formats.images import SegmentedImage


class FormatWriter(ABC):
    """A file or folder `place` in a folder of results; within a `with` block images are added to it.

    `classes` are the names by value in the masks. If the block ends in an error, what was there before stays.
    """

    place: str

    def __init__(self, folder: Path, classes: Mapping[int, str]) -> None:
        self.folder, self.classes = folder, classes
        self.work = folder / f".{self.place}.{os.getpid()}.tmp"  # a folder, as all the parts of a file lie in it

    @abstractmethod
    def add(self, image: SegmentedImage) -> None:
        """Write down one image."""

    def begin(self) -> None:
        """Before the first image; by default its folder is made."""
        (self.work / self.place).mkdir()

    def end(self) -> None:  # noqa: B027, as most formats have nothing to do
        """After the last image."""

    def file(self, name: str, suffix: str) -> Path:
        """Where a file of an image goes; its folders are made."""
        path = self.work / self.place / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def __enter__(self) -> "FormatWriter":
        for left in self.folder.glob(f".{self.place}.*.tmp"):
            shutil.rmtree(left)
        self.work.mkdir()
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.end()
            if kind is None:
                if (self.folder / self.place).exists():
                    (self.folder / self.place).rename(self.work / "before")
                (self.work / self.place).rename(self.folder / self.place)
        finally:
            shutil.rmtree(self.work)


def write_line(file: BinaryIO, text: str) -> None:
    """A line in UTF-8; names of files in no known encoding keep their bytes."""
    file.write(f"{text}\n".encode(errors="surrogateescape"))

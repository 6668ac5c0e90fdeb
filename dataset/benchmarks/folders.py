"""Benchmarks of images in one folder and grey masks in a folder of each class."""

from pathlib import Path
from typing import ClassVar

from dataset.benchmarks.base import Benchmark, GreyMaskStore, ImageIndex, ImageMaskStore, Mode, listed_index
from dataset.lists import find_list, read_class_lists


class ClassFolders(Benchmark):
    """Test sets for networks trained on other images: classes take turns, the images of each by name.

    What holds which class stands in a list of lines `class name name ...`, which `tools.prepare` writes.
    """

    IMAGE: ClassVar[str]  # path of an image; {} is its name
    MASK: ClassVar[str]  # path of its mask; * is the class's folder
    FOLDERS: ClassVar[tuple[str, ...]] = ()  # of the classes, from class 1

    def index(self, mode: Mode) -> ImageIndex:
        listed = read_class_lists(find_list(self.lists, f"{self.cfg.data_set}.txt"))
        by_class = {c: [self.IMAGE.format(name) for name in self.chosen(sorted(listed[c]))] for c in sorted(listed)}
        return listed_index(by_class)

    def chosen(self, names: list[str]) -> list[str]:
        """The images of a class that count."""
        return names

    def mask(self, name: str) -> Path:
        """The mask of an image, with * for the class's folder."""
        return self.root / self.MASK.format(name)

    def files(self, index: ImageIndex) -> ImageMaskStore:
        files = GreyMaskStore({name: (self.root / name, self.mask(Path(name).stem)) for name in index.images})
        files.folders = dict(enumerate(self.FOLDERS, 1))
        return files.checked(self.lists)

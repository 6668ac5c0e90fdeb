"""FSS-1000: 1000 classes of ten images; 520 train, 240 validate, 240 test (Li et al., CVPR 2020)."""

from itertools import pairwise

from dataset.benchmarks.base import Benchmark, GreyMaskStore, ImageIndex, ImageMaskStore, Mode, listed_index
from dataset.lists import find_list, read_lines
from dataset.reading import Mask
from util.errors import UserError
from util.image import resize_mask

PARTS: dict[Mode, str] = {"test": "test", "val": "val", "train": "trn"}


class FssMaskStore(GreyMaskStore):
    """Grey masks; the few that have another size than their image are brought to it, as every public code does."""

    def read(self, name: str, class_id: int) -> Mask:
        return resize_mask(super().read(name, class_id), *self.size(name))


class Fss1000(Benchmark):
    """Every image of a test class is a query once: 2400 episodes; the lists of classes are HSNet's."""

    ROOT, CLASSES = "../data/FSS-1000", ()

    def names(self) -> dict[int, str]:
        """The test classes from 1, then those of validation and training as far as their lists are there."""
        return {number: name for mode in PARTS for number, name in self._part(mode, missing_ok=mode != "test").items()}

    def index(self, mode: Mode) -> ImageIndex:
        """Ten images a class; queries in the order 1, 10, 2, ... 9, as a sorted folder has them."""
        classes = self._part(mode)
        by_class = {number: [f"{name}/{k}.jpg" for k in range(1, 11)] for number, name in classes.items()}
        return listed_index(by_class, [(name, number) for number in classes for name in sorted(by_class[number])])

    def files(self, index: ImageIndex) -> ImageMaskStore:
        """Stray `.jpeg` files are left alone."""
        root = self.root / "data" if (self.root / "data").is_dir() else self.root
        pairs = {name: (root / name, (root / name).with_suffix(".png")) for name in index.images}
        return FssMaskStore(pairs).checked(self.lists)

    def wanted(self, mode: Mode) -> list[int]:
        return list(self._part(mode))

    def class_label(self, class_id: int) -> str:
        return self._part("test")[class_id]

    def _part(self, mode: Mode, missing_ok: bool = False) -> dict[int, str]:
        first = {"test": 1, "val": 241, "train": 481}[mode]
        names = [f"{start}{PARTS[mode]}.txt" for start in ("fss1000_", "fss/", "")]
        if missing_ok and not any((self.lists / name).is_file() for name in names):
            return {}
        path = find_list(self.lists, *names)
        classes = sorted(read_lines(path))
        if again := [name for name, other in pairwise(classes) if name == other]:
            raise UserError(f"{path}: {again[0]} is there twice; fetch the list again")
        return dict(enumerate(classes, first))

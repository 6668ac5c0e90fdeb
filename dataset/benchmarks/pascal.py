"""PASCAL-5i: PASCAL VOC 2012 with the masks of the Semantic Boundaries Dataset, 4 folds of 5 classes."""

from typing import ClassVar

from dataset.benchmarks.base import ImageIndex, query_index
from dataset.benchmarks.layout import ListedMasks
from dataset.lists import find_list, read_labelled

# fmt: off
PASCAL_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


class Pascal(ListedMasks):
    """PASCAL-5i (Shaban et al., BMVC 2017); its public lists are HSNet's."""

    CLASSES: ClassVar[tuple[str, ...]] = PASCAL_CLASSES
    ROOT, FOLDS, EPISODES = "../data/VOCdevkit2012/VOC2012", 4, 1000

    def public_index(self) -> ImageIndex:
        """Every line of the fold's list is a query, with its class."""
        return pascal_lines(self.read_fold("val", self.cfg.split), self.wanted("test"))

    def read_fold(self, part: str, fold: int) -> list[tuple[str, int]]:
        """Name and class of every line of one of HSNet's lists, `part` val or trn, in its order."""
        names = f"pascal5i_hsnet_{part}_fold{fold}.txt", f"pascal/{part}/fold{fold}.txt", f"{part}/fold{fold}.txt"
        return read_labelled(find_list(self.lists, *names))


def pascal_lines(lines: list[tuple[str, int]], classes: list[int]) -> ImageIndex:
    """The index of `name, class` lines of VOC images."""
    return query_index([(f"JPEGImages/{name}.jpg", class_id) for name, class_id in lines], classes)

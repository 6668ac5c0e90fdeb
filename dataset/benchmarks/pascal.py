"""PASCAL-5i: PASCAL VOC 2012 with the masks of the Semantic Boundaries Dataset, 4 folds of 5 classes."""

from typing import ClassVar

from dataset.benchmarks.base import CLASS_NAMES, ImageIndex, query_index
from dataset.benchmarks.layout import ListedMasks
from dataset.lists import read_labelled

PASCAL_CLASSES = CLASS_NAMES["pascal"]


class Pascal(ListedMasks):
    """PASCAL-5i (Shaban et al., BMVC 2017); its public lists are HSNet's."""

    CLASSES: ClassVar[tuple[str, ...]] = PASCAL_CLASSES
    ROOT, FOLDS, EPISODES = "../data/VOCdevkit2012/VOC2012", 4, 1000
    PUBLIC = "pascal5i_hsnet_{part}_fold{fold}.txt", "pascal/{part}/fold{fold}.txt", "{part}/fold{fold}.txt"

    def public_index(self) -> ImageIndex:
        """Every line of the fold's list is a query, with its class."""
        return pascal_lines(read_labelled(self.public_list("val", self.cfg.split)), self.wanted("test"))


def pascal_lines(lines: list[tuple[str, int]], classes: list[int]) -> ImageIndex:
    """The index of `name, class` lines of VOC images."""
    return query_index([(f"JPEGImages/{name}.jpg", class_id) for name, class_id in lines], classes)

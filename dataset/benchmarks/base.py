"""What a benchmark is: pictures, masks, classes, folds and lists behind one small interface."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from util.config import Config
from util.errors import UserError

Mode = Literal["train", "val"]
Files = dict[str, tuple[Path, Path]]  # image name -> image file, mask file


@dataclass
class ImageIndex:
    """All that drawing episodes needs: images in list order, the classes in each, the images of each class."""

    images: list[str]
    classes: dict[str, list[int]]  # image -> classes in its mask, ascending, however small
    by_class: dict[int, list[str]]  # wanted class -> its images above the area threshold, in list order


def fold_classes(
    data_set: str, split: int, num_classes: int, folds: int, use_split_coco: bool
) -> tuple[list[int], list[int]]:
    """Base and novel classes of a fold, ascending: contiguous groups, or with use_split_coco every folds-th COCO class.

    UserError for a fold that does not exist.
    """
    if not 0 <= split < folds <= num_classes:
        raise UserError(f"split: {split}, with {folds} folds of {num_classes} classes; choose 0 to {folds - 1}")
    if data_set == "coco" and use_split_coco:
        novel = list(range(split + 1, num_classes + 1, folds))
    else:
        size, larger = divmod(num_classes, folds)  # the first `larger` groups have one class more
        start = split * size + min(split, larger)
        novel = list(range(start + 1, start + 1 + size + (split < larger)))
    return [class_id for class_id in range(1, num_classes + 1) if class_id not in novel], novel


class Benchmark(ABC):
    """A data set as papers use it; a subclass is a whole benchmark, and `table.BENCHMARKS` knows its name.

    Args: the config that names it by `data_set`, and its `data_root` and `split`.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.root = cfg, Path(cfg.data_root)

    @abstractmethod
    def names(self) -> dict[int, str]:
        """Name of every class by its number."""

    @abstractmethod
    def load(self, mode: Mode) -> tuple[ImageIndex, Files]:
        """Index of the fold's training or validation images, and the files of each."""

    def wanted(self, mode: Mode) -> list[int]:
        """Base classes for training, novel classes for validation and testing, ascending."""
        cfg = self.cfg
        base, novel = fold_classes(cfg.data_set, cfg.split, cfg.num_classes, cfg.folds, cfg.use_split_coco)
        return base if mode == "train" else novel

    def base_files(self, mode: Mode) -> Files:
        """The files of every image of a list, on which the base learner trains; their masks are index images."""
        raise UserError(
            f"data_set: {self.cfg.data_set} has no index masks to train a base learner on; set ensemble False"
        )

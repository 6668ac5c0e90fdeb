"""What a benchmark is: images, masks, classes, folds and lists behind one small interface."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from dataset.reading import Mask, read_grey_mask, read_mask
from util.config import Config
from util.errors import UserError
from util.image import image_size, read_image
from util.pixels import IGNORE

Mode = Literal["train", "val", "test"]
# Data set -> names of its classes, from class 1.
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    data_set: tuple(names)
    for data_set, names in yaml.safe_load(Path(__file__).with_name("classes.yaml").read_text()).items()
}


class ImageMaskStore(dict[str, tuple[Path, Path]]):
    """Image name -> image file, mask file; read here as index masks, which benchmarks of other masks override."""

    may_be_empty = False  # whether an image may lack the class for which it is listed

    def image(self, name: str, max_side: int | None = None) -> NDArray[np.uint8]:
        """RGB image (h, w, 3), its longer side reduced to `max_side`; UserError when it cannot be read."""
        return read_image(self[name][0], max_side)

    def size(self, name: str) -> tuple[int, int]:
        """Height and width in pixels of an image as it is."""
        return image_size(self[name][0])

    def mask_rule(self, name: str) -> str:
        """What an image's masks depend on besides their file."""
        return ""

    def mask_file(self, name: str, class_id: int) -> Path:
        """The file that holds the mask of a class in an image."""
        return self[name][1]

    def read(self, name: str, class_id: int) -> Mask:
        """The mask (h, w) of one class in an image: 1 where it is, 255 not to be judged, else 0."""
        mask = read_mask(self.mask_file(name, class_id))
        return np.where(mask == IGNORE, mask, mask == class_id).astype(np.uint8)

    def checked(self, source: Path) -> "ImageMaskStore":
        """Itself, after one look into each folder of images: on network disks, one per image takes minutes.

        UserError names an image that is missing, and `source`, where it is named.
        """
        folders: dict[Path, set[str]] = {}
        for image, _ in self.values():
            folder = image.parent
            if folder not in folders:
                folders[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
            if image.name not in folders[folder]:
                raise UserError(f"{image}: no such image, named in {source}; check the list and data_root")
        return self


class GreyMaskStore(ImageMaskStore):
    """Masks that are grey images of one object; a `*` in their paths is the folder of the class."""

    folders: Mapping[int, str] = {}

    def mask_file(self, name: str, class_id: int) -> Path:
        return Path(str(self[name][1]).replace("*", self.folders.get(class_id, "*")))

    def read(self, name: str, class_id: int) -> Mask:
        """1 where the grey value is 128 or more."""
        return read_grey_mask(self.mask_file(name, class_id))


@dataclass
class ImageIndex:
    """All that drawing episodes needs: images in list order, the classes in each, the images of each class."""

    images: list[str]
    classes: dict[str, list[int]]  # image -> classes in its mask, ascending, however small
    by_class: dict[int, list[str]]  # wanted class -> its images above the area threshold, in list order
    parts: "tuple[ImageIndex, ...]" = ()  # where it joins several: balanced episodes are drawn from each in turn
    contents: dict[str, list[int]] | None = None  # image -> all classes in its mask, where `classes` are a list's alone
    # What `protocol: hsnet` needs beside: queries and their classes in order, where they are given,
    lines: list[tuple[str, int]] = field(default_factory=list)
    draw_class: bool = False  # whether the class is drawn at random, or the classes take turns,
    # (class, image) -> its objects, one of which is drawn (None is drawn again with another image),
    objects: dict[tuple[int, str], list[str | None]] = field(default_factory=dict)
    distinct: bool = False  # and whether the supports of an episode differ.


def listed_index(by_class: dict[int, list[str]], lines: Sequence[tuple[str, int]] = (), **rule: Any) -> ImageIndex:
    """An index of what class lists alone tell; images in the order of the query lines, or of the lists.

    UserError names a line of a class that is not wanted.
    """
    if foreign := [(name, class_id) for name, class_id in lines if class_id not in by_class]:
        name, class_id = foreign[0]
        raise UserError(
            f"lists: {name} is listed for class {class_id}, not of {list(by_class)}; take the fold's own list"
        )
    classes: dict[str, list[int]] = {}
    for name, class_id in lines or [(name, class_id) for class_id, names in by_class.items() for name in names]:
        classes.setdefault(name, []).append(class_id)
    classes = {name: sorted(set(present)) for name, present in classes.items()}
    return ImageIndex(list(classes), classes, by_class, lines=list(lines), **rule)


def query_index(lines: Sequence[tuple[str, int]], classes: Sequence[int]) -> ImageIndex:
    """An index of (image, class) lines, each of which is a query; UserError for a line of another class."""
    return listed_index({c: [name for name, class_id in lines if class_id == c] for c in classes}, lines)


class Benchmark(ABC):
    """A data set as papers use it; a subclass is a whole benchmark, and `table.BENCHMARKS` knows its name.

    Args: the config that names it by `data_set`, and its `data_root`, `split` and `lists`.
    """

    CLASSES: ClassVar[tuple[str, ...]] = ()  # names, from class 1
    ROOT: ClassVar[str] = ""  # where it lies if `test_root` says nothing
    FOLDS: ClassVar[int] = 1
    EPISODES: ClassVar[int | None] = None  # of a test; None: as many as there are queries
    VARIANTS: ClassVar[tuple[str, ...]] = ("",)  # values of the key `variant`, the default first
    NOTES: ClassVar[tuple[str, ...]] = ()  # what readers of its figures should know

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.root = cfg, Path(cfg.data_root)
        self.lists = self.root / "lists" if cfg.lists is None else Path(cfg.lists)
        is_tested = cfg.test_set in (None, cfg.data_set)  # `variant` is of the test set
        self.variant = cfg.variant if cfg.variant and is_tested else self.VARIANTS[0]
        if self.variant not in self.VARIANTS:
            choices = ", ".join(filter(None, self.VARIANTS)) or "none"
            raise UserError(f"variant: {self.variant!r} is no variant of {cfg.data_set}; choose: {choices}")

    @abstractmethod
    def index(self, mode: Mode) -> ImageIndex:
        """Which images count for which class of the fold in a mode, as far as possible without any image."""

    @abstractmethod
    def files(self, index: ImageIndex) -> ImageMaskStore:
        """The files of an index's images; UserError names one that is missing."""

    def load(self, mode: Mode) -> tuple[ImageIndex, ImageMaskStore]:
        """Index of a mode, and the files of its images."""
        index = self.index(mode)
        return index, self.files(index)

    def names(self) -> dict[int, str]:
        """Name of every class by its number."""
        return dict(enumerate(self.CLASSES, 1))

    def wanted(self, mode: Mode) -> list[int]:
        """Base classes for training, those that `test_classes` says for validation and testing, ascending."""
        cfg = self.cfg
        if self.FOLDS == 1 and self.CLASSES:
            return list(self.names())
        base, novel = cfg.fold_classes
        return base if mode == "train" or cfg.test_classes == "base" else novel

    def base_files(self, mode: Mode) -> ImageMaskStore:
        """The files of every image of a list, on which the base learner trains; their masks are index images."""
        raise UserError(f"data_set: {self.cfg.data_set} has no index masks for a base learner; set ensemble False")

    def episodes(self, index: ImageIndex) -> int:
        """How many a test has if nobody says another number."""
        return self.EPISODES or len(index.lines) or len(index.images)

    def notes(self) -> list[str]:
        """What a reader of its figures should know: conventions, and what could not be verified."""
        return list(self.NOTES)

    def class_label(self, class_id: int) -> str:
        """What stands for a class in a list of episodes."""
        return str(class_id)

    def image_label(self, name: str) -> str:
        """What stands for an image in a list of episodes."""
        return Path(name).stem

"""MSRC-4i: MSRC v2 (Shotton et al., ECCV 2006), 591 images with nearly every pixel labelled, 22 classes in 4 folds."""

from collections.abc import Collection

import numpy as np

from dataset.benchmarks.base import CLASS_NAMES, ImageIndex, ImageMaskStore, Mode
from dataset.benchmarks.layout import ListedMasks
from dataset.reading import Mask, read_mask
from util.folds import fold_classes
from util.pixels import IGNORE

MSRC_CLASSES = CLASS_NAMES["msrc"]
IN_FOLDS = [value for value, name in enumerate(MSRC_CLASSES, 1) if name != "horse"]  # which has 3 images


class MsrcMaskStore(ImageMaskStore):
    """Masks in which pixels of the `hidden` classes are not to be judged."""

    hidden: Collection[int] = ()

    def mask_rule(self, name: str) -> str:
        """As in ImageMaskStore."""
        return f" without {sorted(self.hidden)}" if self.hidden else ""

    def read(self, name: str, class_id: int) -> Mask:
        """As in ImageMaskStore."""
        mask = read_mask(self.mask_file(name, class_id))
        ignored = np.isin(mask, [IGNORE, *self.hidden])
        return np.where(ignored, IGNORE, mask == class_id).astype(np.uint8)


class Msrc(ListedMasks):
    """Things and stuff; fold i has the i-th group of the 22 classes without horse, in groups of 6, 6, 5 and 5.

    Almost every image has novel classes, so training keeps every image of a base class, and ignores novel pixels.
    """

    CLASSES = MSRC_CLASSES
    ROOT, FOLDS, EPISODES = "../data/msrc_v2", 4, 1000
    NOTES = ("training images may show novel classes, whose pixels are ignored there",)

    def wanted(self, mode: Mode) -> list[int]:
        """As in Benchmark."""
        base, novel = fold_classes("msrc", self.cfg.split, len(IN_FOLDS), self.FOLDS, use_split_coco=False)
        chosen = base if mode == "train" or self.cfg.test_classes == "base" else novel
        return [IN_FOLDS[number - 1] for number in chosen]

    def load(self, mode: Mode) -> tuple[ImageIndex, MsrcMaskStore]:
        """As in ListedMasks; training masks hide the classes that are not wanted."""
        index, files = super().load(mode)
        found = MsrcMaskStore(files)
        found.hidden = set(self.names()) - set(self.wanted(mode)) if mode == "train" else ()
        return index, found

    def without_others(self, mode: Mode) -> bool:
        """As in ListedMasks: never, as hardly any image would be left."""
        return False

    def mask_of(self, image: str) -> str:
        """As in ListedMasks."""
        return f"SegmentationClass/{image.removeprefix('JPEGImages/').rpartition('.')[0]}.png"

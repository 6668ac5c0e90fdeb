"""VOC's objects and MSRC's dense scenes together, to meta-train a network for photographs of any kind."""

from collections.abc import Sequence
from typing import ClassVar

from dataset.benchmarks.base import ImageIndex, ImageMaskStore, Mode
from dataset.benchmarks.msrc import IN_FOLDS, MSRC_CLASSES, Msrc, MsrcMaskStore
from dataset.benchmarks.pascal import PASCAL_CLASSES, Pascal
from dataset.reading import Mask

HELD_OUT = ("face", "flower", "sign", "book", "tree", "building")  # of MSRC, on which trained networks are measured
# Of MSRC's config; its threshold is to its 320 x 213 pixels as 2048 is to VOC's 500 x 375.
DENSE = {"num_classes": 23, "area_threshold": 745, "train_list": "ImageSets/trainval.txt", "released_lists": None}


class MixedMaskStore(ImageMaskStore):
    """Masks of both data sets under the classes' numbers in Mixed."""

    msrc = MsrcMaskStore()

    def mask_rule(self, name: str) -> str:
        """As in ImageMaskStore."""
        return self.msrc.mask_rule(name) if name in self.msrc else ""

    def read(self, name: str, class_id: int) -> Mask:
        """As in ImageMaskStore."""
        if name in self.msrc:
            return self.msrc.read(name, MSRC_CLASSES.index(Mixed.CLASSES[class_id - 1]) + 1)
        return super().read(name, class_id)


class Dense(Msrc):
    """All images of MSRC v2 and those of its classes that are `chosen`."""

    chosen: Sequence[int] = ()

    def wanted(self, mode: Mode) -> list[int]:
        """As in Benchmark."""
        return list(self.chosen)


class Mixed(Pascal):
    """Classes of one name are one class. MSRC's pixels of `HELD_OUT` and of VOC's novel classes are ignored.

    Validation and test are VOC's.
    """

    CLASSES: ClassVar[tuple[str, ...]] = PASCAL_CLASSES + tuple(
        name for name in MSRC_CLASSES if name not in PASCAL_CLASSES
    )

    def names(self) -> dict[int, str]:
        """As in Benchmark."""
        return dict(enumerate(self.CLASSES, 1))

    def wanted(self, mode: Mode) -> list[int]:
        """VOC's of the fold, and in training MSRC's others that are not held out."""
        others = range(len(PASCAL_CLASSES) + 1, len(self.CLASSES) + 1) if mode == "train" else ()
        return super().wanted(mode) + [number for number in others if self.CLASSES[number - 1] not in HELD_OUT]

    def load(self, mode: Mode) -> tuple[ImageIndex, ImageMaskStore]:
        """As in ListedMasks; in training the images of both, as the parts of one index."""
        voc, files = super().load(mode)
        if mode != "train":
            return voc, files
        cfg = self.cfg.model_copy(update={**DENSE, "data_root": self.cfg.mixed_root})
        benchmark = Dense(cfg)
        names = [self.CLASSES[number - 1] for number in self.wanted(mode)]
        benchmark.chosen = [value for value in IN_FOLDS if MSRC_CLASSES[value - 1] in names]
        found, masks = benchmark.load(mode)
        number = {value: self.CLASSES.index(MSRC_CLASSES[value - 1]) + 1 for value in benchmark.chosen}
        classes = {image: sorted(number[c] for c in present if c in number) for image, present in found.classes.items()}
        dense = ImageIndex(found.images, classes, {number[value]: images for value, images in found.by_class.items()})
        by_class = {c: images + dense.by_class.get(c, []) for c, images in voc.by_class.items()}
        files = MixedMaskStore(files | masks)
        files.msrc = masks
        return ImageIndex(voc.images + dense.images, voc.classes | classes, by_class, parts=(voc, dense)), files

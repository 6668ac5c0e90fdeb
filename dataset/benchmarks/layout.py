"""Benchmarks in two list files of `image mask` pairs, whose masks are index images: which images count."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from dataset.benchmarks.base import Benchmark, ImageIndex, ImageMaskStore, Mode
from dataset.lists import Pair, find_list, locate, read_class_file, read_list, read_released, span
from dataset.scan import Counts, scan_masks
from util.errors import UserError


class ListedMasks(Benchmark):
    """Images that count by the area of their classes; the base of all sets in the VOC layout."""

    PUBLIC: ClassVar[tuple[str, ...]] = ()  # where a public list may lie, by its part and fold

    def names(self) -> dict[int, str]:
        """Name of every class 1..num_classes; UserError for a class file that is absent, malformed or of others."""
        if self.cfg.class_file is None and self.CLASSES:
            names, source = dict(enumerate(self.CLASSES, 1)), f"data_set {self.cfg.data_set}"
        else:
            path = locate(self.root, self.cfg.class_file or "classes.txt")
            names, source = read_class_file(path), str(path)
        if list(names) != list(range(1, self.cfg.num_classes + 1)):
            listed = span(list(names))
            raise UserError(f"num_classes: {self.cfg.num_classes}, but {source} has classes {listed}; make them agree")
        return names

    def load(self, mode: Mode) -> tuple[ImageIndex, ImageMaskStore]:
        """Index and files of a mode; scans masks that are new or changed.

        Validation keeps every image where a novel class counts; training keeps those whose classes are all base
        classes, or with `train_list: all` every one, and where at least one counts. A class counts from area_threshold
        pixels. What counts is read from released_lists, and under `protocol: hsnet` or with `lists` from those.
        UserError names whatever is missing or malformed.
        """
        cfg, root, names = self.cfg, self._existing_root(), self.names()
        wanted = self.wanted(mode)
        if not wanted:
            raise UserError(f"split: {cfg.split} has no novel classes; set test_set, and evaluate False for training")
        if self._is_public(mode):
            index, files = super().load(mode)
            masks = [(image, self.mask_of(image)) for image in index.images]
            present = _present(_scan(root, masks, self.lists / f"{cfg.data_set}_fold{cfg.split}", names), masks)
            return replace(index, contents=present), files
        if cfg.released_lists is not None:
            folder = locate(root, cfg.released_lists) / ("train" if mode == "train" else "val")
            path = folder / f"data_list_{cfg.split}.txt"
            pairs, by_class = read_released(root, path, folder / f"sub_class_file_list_{cfg.split}.txt", wanted)
            present = _present(_scan(root, pairs, path, names), pairs)
            index = ImageIndex(list(present), present, by_class)
        else:
            path, pairs = self._list(mode)
            counts = _scan(root, pairs, path, names)
            index = _select(pairs, counts, wanted, cfg.area_threshold, self.without_others(mode))
        if not index.images:
            raise UserError(f"{path}: no image for classes {span(wanted)}; check split, num_classes and area_threshold")
        return index, existing_files(root, [pair for pair in pairs if pair[0] in index.classes], path)

    def without_others(self, mode: Mode) -> bool:
        """Whether images with classes that are not wanted are left out."""
        return self.cfg.list_kind == "filtered" if mode == "train" else self.cfg.test_classes == "base"

    def contents(self, mode: Mode) -> tuple[dict[str, list[int]], ImageMaskStore]:
        """Every image of a mode's list with the classes in its mask, however small, and the files of all."""
        path, pairs = self._list(mode)
        counts = _scan(self.root, pairs, path, self.names())
        return _present(counts, pairs), existing_files(self.root, pairs, path)

    def index(self, mode: Mode) -> ImageIndex:
        """The index alone, for which public lists need no image."""
        return self.public_index() if self._is_public(mode) else self.load(mode)[0]

    def files(self, index: ImageIndex) -> ImageMaskStore:
        """Files of the images of public lists."""
        return existing_files(self.root, [(image, self.mask_of(image)) for image in index.images], self.lists)

    def public_list(self, part: str, fold: int) -> Path:
        """The public list of a fold, `part` val or trn."""
        return find_list(self.lists, *(name.format(part=part, fold=fold) for name in self.PUBLIC))

    def public_index(self) -> ImageIndex:
        """Index of the fold's public test lists."""
        raise UserError(f"protocol: hsnet: data_set {self.cfg.data_set} has no public lists; use released or seeded")

    def mask_of(self, image: str) -> str:
        """Where the mask of an image of the public lists lies; here beside it in the VOC layout."""
        return image.replace("JPEGImages", "SegmentationClassAug").replace(".jpg", ".png")

    def _is_public(self, mode: Mode) -> bool:
        return mode != "train" and (self.cfg.protocol == "hsnet" or self.cfg.lists is not None)

    def base_files(self, mode: Mode) -> ImageMaskStore:
        """Files of every image in a mode's list, in list order; UserError names an image that is missing."""
        path, pairs = self._list(mode)
        return existing_files(self.root, pairs, path)

    def _list(self, mode: Mode) -> tuple[Path, list[Pair]]:
        """The list file of a mode and its pairs."""
        cfg = self.cfg
        path = locate(self._existing_root(), cfg.train_list_file if mode == "train" else cfg.val_list)
        return path, read_list(path)

    def _existing_root(self) -> Path:
        if not self.root.is_dir():
            raise UserError(f"data_root: {self.root} is no folder; put the data set there or set data_root")
        return self.root


def _select(
    pairs: Sequence[Pair], counts: dict[str, Counts], wanted: list[int], threshold: int, only_wanted: bool
) -> ImageIndex:
    index = ImageIndex([], {}, {class_id: [] for class_id in wanted})
    for image, mask in pairs:
        present = counts[mask]
        counting = [class_id for class_id in wanted if present.get(class_id, 0) >= threshold and class_id in present]
        if not counting or (only_wanted and not set(present) <= set(wanted)):
            continue
        index.images.append(image)
        index.classes[image] = sorted(present)
        for class_id in counting:
            index.by_class[class_id].append(image)
    return index


def _present(counts: dict[str, Counts], pairs: Sequence[Pair]) -> dict[str, list[int]]:
    return {image: sorted(counts[mask]) for image, mask in pairs}


def _scan(root: Path, pairs: Sequence[Pair], path: Path, names: dict[int, str]) -> dict[str, Counts]:
    """Counts of every mask of the pairs, all of known classes."""
    counts = scan_masks(root, [mask for _, mask in pairs], path)
    for mask, present in counts.items():
        if unknown := set(present) - set(names):
            raise UserError(
                f"{root / mask}: holds class {min(unknown)}, but num_classes is {len(names)}; correct either"
            )
    return counts


def existing_files(root: Path, pairs: Sequence[Pair], source: Path) -> ImageMaskStore:
    """Files of the pairs; UserError names an image that is missing, and `source`, which lists it."""
    return ImageMaskStore({image: (root / image, root / mask) for image, mask in pairs}).checked(source)

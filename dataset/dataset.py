"""From episodes and lists to tensors: meta-training, testing, and the base learner's training and validation."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.benchmarks.base import ImageIndex, ImageMaskStore, Mode
from dataset.benchmarks.table import open_benchmark
from dataset.cached_crops import Crop, CropStore
from dataset.episode import Episode, absent_classes, check_possible, draw_absent, draw_episode, hard_images
from dataset.reading import RecentArrays, check_sizes, read_pair
from dataset.transform import (
    Augmentation,
    Image,
    Mask,
    fill_boxes,
    fit_image,
    fit_mask,
    pad_to_square,
    paste,
    without_ignored,
)
from util.config import Config
from util.errors import UserError
from util.image import ImageRule, normalise, resize_image
from util.pixels import IGNORE

Item = dict[str, Any]

KEEP_OBJECT = 0.85  # of the object's pixels, in a crop for an episode
DECODED_BYTES = 2**28  # of images and masks that an evaluation keeps, over all its loader workers


class _Reader:
    """Reads images with the mask of one class, as a config says; keeps what was read last."""

    def __init__(self, cfg: Config, files: ImageMaskStore, kept_bytes: int = 0) -> None:
        self.cfg, self.files, self.recent = cfg, files, RecentArrays(kept_bytes)

    def read(self, name: str, class_id: int, is_support: bool = False) -> tuple[Image, Mask]:
        """An image and its mask: 1 where the class is, 255 kept, else 0; of a support with ann_type `bbox` its boxes.

        Must not be changed: it may be shared.
        """
        files, max_side = self.files, self.cfg.max_side
        image = self.recent.get(name, lambda: files.image(name, max_side))
        mask = self.recent.get((name, class_id), lambda: files.read(name, class_id))
        check_sizes(files.size(name) if max_side else image.shape[:2], mask, *files[name])
        if not (mask == 1).any() and not files.may_be_empty:
            path = files[name][1]
            raise UserError(f"{path}: no pixel of class {class_id}; draw the episodes from the masks as they are")
        is_boxed = is_support and self.cfg.ann_type == "bbox"
        return image.astype(np.float32), fill_boxes(mask) if is_boxed else mask


class EvaluationEpisodes(Dataset[Item]):
    """The given episodes at one size, images as a method's `rule` says; `protocol: hsnet` squashes them always. Item:

    query (3, size, size) and support (K, 3, size, size) float32 normalised, the supports in the network's order;
    support_mask (K, size, size) and query_mask (h, w), uint8: 1 object, 0 other, 255 ignore. The query's is of its own
    size, on a square of its longer side where images are padded, or with metric_size "input" of the query's size;
    class_index, position in `classes`; class_id; names: query, then supports, last drawn first; number.
    UserError for files that cannot be read or do not hold the class.
    """

    def __init__(
        self,
        cfg: Config,
        episodes: Sequence[Episode],
        files: ImageMaskStore,
        classes: Sequence[int],
        rule: ImageRule = ImageRule(),
    ) -> None:
        self.episodes, self.classes, self.metric_size = episodes, list(classes), cfg.metric_size
        self.size, self.reader = cfg.val_size, _Reader(cfg, files, DECODED_BYTES)
        self.rule = rule._replace(fit="square", resample="antialias") if cfg.protocol == "hsnet" else rule

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> Item:
        episode = self.episodes[number]
        support_names = episode.support[::-1]
        query, query_mask = self.reader.read(episode.query, episode.class_id)
        shown = episode.class_id if episode.support_class is None else episode.support_class
        supports = [self.reader.read(name, shown, is_support=True) for name in support_names]
        masks = [mask if self.rule.keep_ignored else without_ignored(mask) for _, mask in supports]
        if self.metric_size == "input":
            truth = fit_mask(query_mask, self.size, self.rule)
        else:
            truth = pad_to_square(query_mask) if self.rule.fit == "padded" else query_mask.copy()
        return {
            "query": self._fit(query, query_mask),
            "support": torch.stack([self._fit(image, mask) for image, mask in supports]),
            "support_mask": torch.stack([_tensor(fit_mask(mask, self.size, self.rule)) for mask in masks]),
            "query_mask": _tensor(truth),
            "class_index": self.classes.index(episode.class_id),
            "class_id": episode.class_id,
            "names": [episode.query, *support_names],
            "number": number,
        }

    def _fit(self, image: Image, mask: Mask) -> torch.Tensor:
        return normalise(fit_image(image, self.size, self.rule, mask.shape))


class _ChangedImages(Dataset[Item]):
    """Images of a meta-training and the masks of one class in each, changed at random."""

    def __init__(self, cfg: Config, index: ImageIndex, files: ImageMaskStore, rule: ImageRule) -> None:
        self.cfg, self.index, self.files, self.rule = cfg, index, files, rule
        self.augmentation, self.reader = train_augmentation(cfg, rule), _Reader(cfg, files)

    def changed(
        self, name: str, class_id: int, rng: random.Random, *, is_support: bool = False, pasted: bool = False
    ) -> tuple[torch.Tensor, Mask]:
        """An image, normalised, and its mask.

        With `pasted` an object of a wanted class that the image lacks lies over it, unless it has them all.
        """
        image, mask = self.augmentation(*self.reader.read(name, class_id, is_support), rng)
        if pasted and (absent := absent_classes(self.index, name)):
            other = rng.choice(absent)
            image, mask = paste(image, mask, *self.reader.read(rng.choice(self.index.by_class[other]), other), rng)
        return normalise(image), mask


class TrainingEpisodes(_ChangedImages):
    """As many episodes as training images, each a function of (seed, epoch, item) alone.

    Every image is a query once, or with `balanced_queries` every class as often as another, and of joined data sets
    each in turn, where supports and absent classes are of the query's own.
    In the share `hard_queries` of episodes the query is another image of the class that was drawn, one that shows
    another class too, if there is any: so classes are as frequent as before, and only the support tells which object
    is meant. In the share `absent_queries` the supports show a class that the query lacks, into the share
    `paste_queries` of queries an object of another class is pasted. Item:

    query (3, H, W) and support (K, 3, H, W) float32 normalised; masks (K, H, W) uint8 and (H, W) int64:
    1 object, 0 other, 255 ignore, which becomes background in support masks unless `rule.keep_ignored`;
    class_index, position in `classes`; class_id; names, query first.
    With `crops` the backbone's maps by name, (C, h, w) and (K, C, h, w), stand for the images.
    UserError when a class has too few images, and for files that cannot be read or do not hold the class.
    """

    def __init__(
        self,
        cfg: Config,
        index: ImageIndex,
        files: ImageMaskStore,
        classes: Sequence[int],
        seed: int,
        epoch: int,
        crops: CropStore | None = None,
        rule: ImageRule = ImageRule(),
    ) -> None:
        super().__init__(cfg, index, files, rule)
        self.parts = index.parts if index.parts and cfg.balanced_queries else (index,)
        for part in self.parts:
            check_possible(part, cfg.shot)
        self.classes, self.seed, self.epoch, self.crops = list(classes), seed, epoch, crops
        self.hard = [hard_images(part) if cfg.hard_queries else {} for part in self.parts]

    def __len__(self) -> int:
        return len(self.index.images)

    def __getitem__(self, item: int) -> Item:
        cfg, rng = self.cfg, random.Random(f"{self.seed}/{self.epoch}/{item}")
        number = item % len(self.parts)
        index = self.parts[number]
        if cfg.balanced_queries:
            class_id = rng.choice([class_id for class_id, images in index.by_class.items() if images])
            episode = draw_episode(index, rng.choice(index.by_class[class_id]), cfg.shot, rng, class_id)
        else:
            episode = draw_episode(index, index.images[item], cfg.shot, rng)
        if (harder := self.hard[number].get(episode.class_id)) and _happens(cfg.hard_queries, rng):
            episode = draw_episode(index, rng.choice(harder), cfg.shot, rng, episode.class_id)
        shown, absent = episode.class_id, None
        if _happens(cfg.absent_queries, rng):
            absent = draw_absent(index, episode.query, cfg.shot, rng)
        pasted = absent is None and _happens(cfg.paste_queries, rng)  # or the absent class might be pasted in
        query, query_mask = self._seen(episode.query, shown, rng, pasted=pasted)
        if absent:
            episode, query_mask = absent, np.where(query_mask == IGNORE, query_mask, 0)
        support = [self._seen(name, episode.class_id, rng, is_support=True) for name in episode.support]
        masks = [mask if self.rule.keep_ignored else without_ignored(mask) for _, mask in support]
        return {
            "query": query,
            "support": _collate([image for image, _ in support]),
            "support_mask": torch.stack([_tensor(mask) for mask in masks]),
            "query_mask": _tensor(query_mask).long(),
            "class_index": self.classes.index(episode.class_id),
            "class_id": episode.class_id,
            "names": [episode.query, *episode.support],
        }

    def _seen(
        self, name: str, class_id: int, rng: random.Random, *, is_support: bool = False, pasted: bool = False
    ) -> tuple[torch.Tensor | dict[str, torch.Tensor], Mask]:
        """An image as the network takes it, changed at random, and the mask of the class in it (H, W)."""
        if self.crops:
            number = rng.randrange(self.crops.count)
            return self.crops.read(self.files, name, class_id, -1 - number if pasted else number)
        return self.changed(name, class_id, rng, is_support=is_support, pasted=pasted)


class TrainingCrops(_ChangedImages):
    """The given crops of training images, each one random change that is a function of its (name, class, number).

    Item: image (3, H, W) float32 normalised, mask (H, W) uint8 as in TrainingEpisodes. UserError as there.
    """

    def __init__(
        self, cfg: Config, crops: Sequence[Crop], index: ImageIndex, files: ImageMaskStore, rule: ImageRule
    ) -> None:
        super().__init__(cfg, index, files, rule)
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, item: int) -> Item:
        name, class_id, number = self.crops[item]
        rng = random.Random(f"{name}/{class_id}/{number}")
        image, mask = self.changed(name, class_id, rng, pasted=number < 0)
        return {"image": image, "mask": _tensor(mask)}


class BaseImages(Dataset[Item]):
    """Images of a list with the labels of the base learner: i + 1 for the i-th base class, 255 ignore, else 0. Item:

    image (3, H, W) float32 normalised; label (H, W) int64; names, of the image alone. Training images are changed at
    random as a function of (seed, epoch, item) alone; validation's have one size, the label (h, w) its own. `files` are
    those of the list, where they are at hand: else it is read. UserError for files that cannot be read.
    """

    def __init__(
        self, cfg: Config, mode: Mode, seed: int = 0, epoch: int = 0, files: ImageMaskStore | None = None
    ) -> None:
        benchmark = open_benchmark(cfg)
        files = benchmark.base_files(mode) if files is None else files
        self.names, self.pairs, self.max_side = list(files), list(files.values()), cfg.max_side
        self.mode, self.seed, self.epoch, self.size = mode, seed, epoch, cfg.base_train_h
        scales, rotation = (cfg.base_scale_min, cfg.base_scale_max), (cfg.rotate_min, cfg.rotate_max)
        self.augmentation = Augmentation(self.size, self.size, scales, rotation, keep_object=0)
        classes = benchmark.wanted("train")
        self.label_of_value = np.zeros(256, np.uint8)
        self.label_of_value[classes] = np.arange(1, len(classes) + 1)
        self.label_of_value[IGNORE] = IGNORE

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int) -> Item:
        image, mask = read_pair(*self.pairs[item], self.max_side)
        label = self.label_of_value[mask]
        if self.mode == "train":
            image, label = self.augmentation(image, label, random.Random(f"{self.seed}/{self.epoch}/{item}"))
        else:
            image = resize_image(image, self.size, self.size)
        return {"image": normalise(image), "label": _tensor(label).long(), "names": [self.names[item]]}


def train_augmentation(cfg: Config, rule: ImageRule = ImageRule()) -> Augmentation:
    """How meta-training changes images."""
    scales, rotation = (cfg.scale_min, cfg.scale_max), (cfg.rotate_min, cfg.rotate_max)
    return Augmentation(cfg.train_h, cfg.train_w, scales, rotation, KEEP_OBJECT, rule.augment)


def collate(items: Sequence[Item]) -> Item:
    """A batch: tensors are stacked where their shapes agree, else listed; numbers become (B,) int64, names a list.

    Tensors by name become batches by name.
    """
    return {key: _collate([item[key] for item in items]) for key in items[0]}


def _collate(values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: _collate([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values) if len({value.shape for value in values}) == 1 else values
    return torch.tensor(values) if isinstance(values[0], int) else values


def _happens(share: float, rng: random.Random) -> bool:
    return share > 0 and rng.random() < share


def _tensor(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))

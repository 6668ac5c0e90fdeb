"""From episodes and lists to tensors: meta-training, testing, and the base learner's training and validation."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dataset.benchmarks.base import ImageIndex, ImageMaskStore
from dataset.benchmarks.table import open_benchmark
from dataset.cached_crops import Crop, CropStore
from dataset.episode import Episode, absent_classes, check_possible, draw_absent, draw_episode, hard_images
from dataset.reading import check_sizes, read_pair
from dataset.recent import RecentArrays
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


class EvaluationEpisodes(Dataset[Item]):
    """The given episodes at one size, images as a method's `rule` says. Item:

    query (3, size, size) and support (K, 3, size, size) float32 normalised, the supports in the network's order;
    support_mask (K, size, size) and query_mask (h, w), uint8: 1 object, 0 other, 255 ignore. The query's is of its own
    size, on a square of its longer side where images are padded, or with metric_size "input" of the query's size;
    class_index, position in `classes`; class_id; names: query, then supports, last drawn first; number.
    UserError for files that cannot be read or do not hold the class.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        files: ImageMaskStore,
        classes: Sequence[int],
        size: int,
        ann_type: str = "mask",
        max_side: int | None = None,
        rule: ImageRule = ImageRule(),
        metric_size: str = "original",
    ) -> None:
        self.episodes, self.files, self.classes = episodes, files, list(classes)
        self.size, self.ann_type, self.max_side, self.metric_size = size, ann_type, max_side, metric_size
        self.rule, self.recent = rule, RecentArrays(DECODED_BYTES)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> Item:
        episode, files = self.episodes[number], (self.files, self.max_side, self.recent)
        support_names = episode.support[::-1]
        query, query_mask = _read_object(episode.query, episode.class_id, *files)
        shown = episode.class_id if episode.support_class is None else episode.support_class
        images, masks = zip(*(_read_support(name, shown, self.ann_type, *files) for name in support_names), strict=True)
        if not self.rule.keep_ignored:
            masks = tuple(without_ignored(mask) for mask in masks)
        pairs = zip(images, masks, strict=True)
        return {
            "query": self._fit(query, query_mask),
            "support": torch.stack([self._fit(image, mask) for image, mask in pairs]),
            "support_mask": torch.stack([_tensor(fit_mask(mask, self.size, self.rule)) for mask in masks]),
            "query_mask": _tensor(self._truth(query_mask)),
            "class_index": self.classes.index(episode.class_id),
            "class_id": episode.class_id,
            "names": [episode.query, *support_names],
            "number": number,
        }

    def _fit(self, image: Image, mask: Mask) -> torch.Tensor:
        return normalise(fit_image(image, self.size, self.rule, mask.shape))

    def _truth(self, mask: Mask) -> Mask:
        if self.metric_size == "input":
            return fit_mask(mask, self.size, self.rule)
        return pad_to_square(mask) if self.rule.fit == "padded" else mask.copy()


class TrainingEpisodes(Dataset[Item]):
    """One episode for every training image, a function of (seed, epoch, item) alone.

    In the share `hard_queries` of episodes the query is another image of the class that was drawn, one that shows
    another class too, if there is any: so classes are as frequent as before, and only the support tells which object
    is meant. In the share `absent_queries` the supports show a class that the query lacks, into the share
    `paste_queries` of queries an object of another class is pasted. Item:

    query (3, H, W) and support (K, 3, H, W) float32 normalised; masks (K, H, W) uint8 and (H, W) int64:
    1 object, 0 other, 255 ignore, which becomes background in support masks unless `keep_ignored`;
    class_index, position in `classes`; class_id; names, query first.
    With `crops` the backbone's maps by name, (C, h, w) and (K, C, h, w), stand for the images.
    UserError when a class has too few images, and for files that cannot be read or do not hold the class.
    """

    def __init__(
        self,
        index: ImageIndex,
        files: ImageMaskStore,
        classes: Sequence[int],
        shot: int,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        ann_type: str = "mask",
        max_side: int | None = None,
        hard_queries: float = 0,
        absent_queries: float = 0,
        paste_queries: float = 0,
        crops: CropStore | None = None,
        keep_ignored: bool = True,
    ) -> None:
        check_possible(index, shot)
        self.index, self.files, self.classes, self.shot = index, files, list(classes), shot
        self.augmentation, self.seed, self.epoch = augmentation, seed, epoch
        self.ann_type, self.max_side, self.crops, self.keep_ignored = ann_type, max_side, crops, keep_ignored
        self.hard_queries, self.absent_queries, self.paste_queries = hard_queries, absent_queries, paste_queries
        self.hard = hard_images(index) if hard_queries else {}

    def __len__(self) -> int:
        return len(self.index.images)

    def __getitem__(self, item: int) -> Item:
        rng = _item_generator(self.seed, self.epoch, item)
        episode = draw_episode(self.index, self.index.images[item], self.shot, rng)
        if (harder := self.hard.get(episode.class_id)) and self._happens(self.hard_queries, rng):
            episode = draw_episode(self.index, rng.choice(harder), self.shot, rng, episode.class_id)
        shown, absent = episode.class_id, None
        if self._happens(self.absent_queries, rng):
            absent = draw_absent(self.index, episode.query, self.shot, rng)
        pasted = absent is None and self._happens(self.paste_queries, rng)  # or the absent class might be pasted in
        query, query_mask = self._seen(episode.query, shown, "mask", rng, pasted)
        if absent:
            episode, query_mask = absent, np.where(query_mask == IGNORE, query_mask, 0)
        support = [self._seen(name, episode.class_id, self.ann_type, rng) for name in episode.support]
        masks = [mask if self.keep_ignored else without_ignored(mask) for _, mask in support]
        return {
            "query": query,
            "support": _collate([image for image, _ in support]),
            "support_mask": torch.stack([_tensor(mask) for mask in masks]),
            "query_mask": _tensor(query_mask).long(),
            "class_index": self.classes.index(episode.class_id),
            "class_id": episode.class_id,
            "names": [episode.query, *episode.support],
        }

    @staticmethod
    def _happens(share: float, rng: random.Random) -> bool:
        return share > 0 and rng.random() < share

    def _seen(
        self, name: str, class_id: int, ann_type: str, rng: random.Random, pasted: bool = False
    ) -> tuple[torch.Tensor | dict[str, torch.Tensor], Mask]:
        """An image as the network takes it, changed at random, and the mask of the class in it (H, W)."""
        if self.crops:
            number = rng.randrange(self.crops.count)
            return self.crops.read(self.files, name, class_id, -1 - number if pasted else number)
        return _changed(self, name, class_id, ann_type, rng, pasted)


class TrainingCrops(Dataset[Item]):
    """The given crops of training images, each one random change that is a function of its (name, class, number).

    Item: image (3, H, W) float32 normalised, mask (H, W) uint8 as in TrainingEpisodes. UserError as there.
    """

    def __init__(
        self,
        crops: Sequence[Crop],
        index: ImageIndex,
        files: ImageMaskStore,
        augmentation: Augmentation,
        max_side: int | None = None,
    ) -> None:
        self.crops, self.index, self.files = crops, index, files
        self.augmentation, self.max_side = augmentation, max_side

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, item: int) -> Item:
        name, class_id, number = self.crops[item]
        rng = random.Random(f"{name}/{class_id}/{number}")
        image, mask = _changed(self, name, class_id, "mask", rng, pasted=number < 0)
        return {"image": image, "mask": _tensor(mask)}


class BaseTraining(Dataset[Item]):
    """Images for the base learner, changed at random as a function of (seed, epoch, item) alone. Item:

    image (3, H, W) float32 normalised; label (H, W) int64: i + 1 for classes[i], 255 ignore, 0 for all else;
    names, of the image alone. UserError for files that cannot be read.
    """

    def __init__(
        self,
        files: ImageMaskStore,
        classes: Sequence[int],
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        max_side: int | None = None,
    ) -> None:
        self.names, self.pairs, self.label_of_value = list(files), list(files.values()), _label_table(classes)
        self.augmentation, self.seed, self.epoch, self.max_side = augmentation, seed, epoch, max_side

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int) -> Item:
        image, mask = read_pair(*self.pairs[item], self.max_side)
        rng = _item_generator(self.seed, self.epoch, item)
        image, label = self.augmentation(image, self.label_of_value[mask], rng)
        return {"image": normalise(image), "label": _tensor(label).long(), "names": [self.names[item]]}


class BaseValidation(Dataset[Item]):
    """Images for the base learner at one size; image and label as in BaseTraining, the label (h, w) of its own size."""

    def __init__(self, files: ImageMaskStore, classes: Sequence[int], size: int, max_side: int | None = None) -> None:
        self.pairs, self.label_of_value = list(files.values()), _label_table(classes)
        self.size, self.max_side = size, max_side

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int) -> Item:
        image, mask = read_pair(*self.pairs[item], self.max_side)
        image = resize_image(image, self.size, self.size)
        return {"image": normalise(image), "label": _tensor(self.label_of_value[mask]).long()}


def test_dataset(
    cfg: Config,
    episodes: Sequence[Episode],
    files: ImageMaskStore,
    classes: Sequence[int],
    rule: ImageRule = ImageRule(),
) -> EvaluationEpisodes:
    """The test episodes of a config, images as the method's rule says; `protocol: hsnet` squashes them in any case."""
    if cfg.protocol == "hsnet":
        rule = rule._replace(fit="square", resample="antialias")
    return EvaluationEpisodes(episodes, files, classes, cfg.val_size, cfg.ann_type, cfg.max_side, rule, cfg.metric_size)


def train_augmentation(cfg: Config, rule: ImageRule = ImageRule()) -> Augmentation:
    """How meta-training changes images."""
    scales, rotation = (cfg.scale_min, cfg.scale_max), (cfg.rotate_min, cfg.rotate_max)
    return Augmentation(cfg.train_h, cfg.train_w, scales, rotation, KEEP_OBJECT, rule.augment)


def train_dataset(
    cfg: Config,
    index: ImageIndex,
    files: ImageMaskStore,
    classes: Sequence[int],
    seed: int,
    epoch: int,
    crops: CropStore | None = None,
    rule: ImageRule = ImageRule(),
) -> TrainingEpisodes:
    """The meta-training episodes of one epoch of a config, images as the method's rule says."""
    shares, read = (cfg.hard_queries, cfg.absent_queries, cfg.paste_queries), (cfg.ann_type, cfg.max_side)
    augmentation, drawn = train_augmentation(cfg, rule), (seed, epoch)
    return TrainingEpisodes(
        index, files, classes, cfg.shot, augmentation, *drawn, *read, *shares, crops, rule.keep_ignored
    )


def base_train_dataset(cfg: Config, seed: int, epoch: int, files: ImageMaskStore | None = None) -> BaseTraining:
    """One epoch of the base learner's images: the whole training list, novel classes as background.

    `files` are those of the list, where they are at hand: else it is read.
    """
    scales, rotation = (cfg.base_scale_min, cfg.base_scale_max), (cfg.rotate_min, cfg.rotate_max)
    augmentation = Augmentation(cfg.base_train_h, cfg.base_train_h, scales, rotation, keep_object=0)
    benchmark = open_benchmark(cfg)
    files = benchmark.base_files("train") if files is None else files
    return BaseTraining(files, benchmark.wanted("train"), augmentation, seed, epoch, cfg.max_side)


def base_val_dataset(cfg: Config) -> BaseValidation:
    """The base learner's validation images: the whole validation list, novel classes as background."""
    benchmark = open_benchmark(cfg)
    return BaseValidation(benchmark.base_files("val"), benchmark.wanted("train"), cfg.base_train_h, cfg.max_side)


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


def _read_object(
    name: str, class_id: int, files: ImageMaskStore, max_side: int | None, recent: RecentArrays | None = None
) -> tuple[Image, Mask]:
    """An image and the mask of one class in it: 1 where that class is, 255 kept, else 0; the mask may be shared."""
    recent = recent or RecentArrays(0)
    image = recent.get(name, lambda: files.image(name, max_side))
    mask = recent.get((name, class_id), lambda: files.read(name, class_id))
    check_sizes(files.size(name) if max_side else image.shape[:2], mask, *files[name])
    if not (mask == 1).any() and not files.may_be_empty:
        raise UserError(f"{files[name][1]}: no pixel of class {class_id}; draw the episodes from the masks as they are")
    return image.astype(np.float32), mask


def _read_support(
    name: str,
    class_id: int,
    ann_type: str,
    files: ImageMaskStore,
    max_side: int | None,
    recent: RecentArrays | None = None,
) -> tuple[Image, Mask]:
    image, mask = _read_object(name, class_id, files, max_side, recent)
    return image, fill_boxes(mask) if ann_type == "bbox" else mask


def _changed(
    data: TrainingEpisodes | TrainingCrops, name: str, class_id: int, ann_type: str, rng: random.Random, pasted: bool
) -> tuple[torch.Tensor, Mask]:
    """An image, normalised, and the mask of the class in it, changed at random.

    With `pasted` an object of a wanted class that it lacks lies over it, unless it has them all.
    """
    index, files = data.index, (data.files, data.max_side)
    image, mask = data.augmentation(*_read_support(name, class_id, ann_type, *files), rng)
    if pasted and (absent := absent_classes(index, name)):
        other = rng.choice(absent)
        image, mask = paste(image, mask, *_read_object(rng.choice(index.by_class[other]), other, *files), rng)
    return normalise(image), mask


def _label_table(classes: Sequence[int]) -> NDArray[np.uint8]:
    """Label of the base learner for every value of a mask."""
    table = np.zeros(256, np.uint8)
    table[list(classes)] = np.arange(1, len(classes) + 1)
    table[IGNORE] = IGNORE
    return table


def _item_generator(seed: int, epoch: int, item: int) -> random.Random:
    return random.Random(f"{seed}/{epoch}/{item}")


def _tensor(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))

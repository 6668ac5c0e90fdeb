"""From episodes and lists to tensors: meta-training, testing, and the base learner's training and validation."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dataset.episode import Episode, absent_classes, check_possible, draw_absent, draw_episode, hard_images
from dataset.index import ImageIndex, ImageMaskStore, config_classes, list_files
from dataset.reading import check_sizes, read_pair
from dataset.transform import Augmentation, Image, Mask, fill_boxes, paste, squash_image, squash_mask
from dataset.views import View, ViewStore
from util.config import Config
from util.errors import UserError
from util.image import normalise, resize_image, resize_mask
from util.pixels import IGNORE

Item = dict[str, Any]

KEEP_OBJECT = 0.85  # of the object's pixels, in a crop for an episode


class EvaluationEpisodes(Dataset[Item]):
    """The given episodes at one size. Item:

    query (3, size, size) and support (K, 3, size, size) float32 normalised, the supports in the network's order;
    support_mask (K, size, size) and query_mask (h, w), of its own size unless metric_size is "input", uint8: 1 object,
    0 other, 255 ignore;
    class_index, position in `classes`; class_id; names: query, then supports, last drawn first; number.
    With `squash` images are resized as HSNet does. UserError for files that cannot be read or do not hold the class.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        files: ImageMaskStore,
        classes: Sequence[int],
        size: int,
        ann_type: str = "mask",
        max_side: int | None = None,
        squash: bool = False,
        metric_size: str = "original",
    ) -> None:
        self.episodes, self.files, self.classes = episodes, files, list(classes)
        self.size, self.ann_type, self.max_side, self.metric_size = size, ann_type, max_side, metric_size
        self.resize = (squash_image, squash_mask) if squash else (resize_image, resize_mask)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> Item:
        episode = self.episodes[number]
        support_names, (of_image, of_mask), size = episode.support[::-1], self.resize, (self.size, self.size)
        query, query_mask = _read_object(self.files, episode.query, episode.class_id, self.max_side)
        shown = episode.class_id if episode.support_class is None else episode.support_class
        support = [_read_support(self.files, name, shown, self.ann_type, self.max_side) for name in support_names]
        return {
            "query": normalise(of_image(query, *size)),
            "support": torch.stack([normalise(of_image(image, *size)) for image, _ in support]),
            "support_mask": torch.stack([_tensor(of_mask(mask, *size)) for _, mask in support]),
            "query_mask": _tensor(query_mask if self.metric_size == "original" else of_mask(query_mask, *size)),
            "class_index": self.classes.index(episode.class_id),
            "class_id": episode.class_id,
            "names": [episode.query, *support_names],
            "number": number,
        }


class TrainingEpisodes(Dataset[Item]):
    """One episode for every training image, a function of (seed, epoch, item) alone.

    In the share `hard_queries` of episodes the query is another image of the class that was drawn, one that shows
    another class too, if there is any: so classes are as frequent as before, and only the support tells which object
    is meant. In the share `absent_queries` the supports show a class that the query lacks, into the share
    `paste_queries` of queries an object of another class is pasted. Item:

    query (3, H, W) and support (K, 3, H, W) float32 normalised; masks (K, H, W) uint8 and (H, W) int64:
    1 object, 0 other, 255 ignore; class_index, position in `classes`; class_id; names, query first.
    With `views` the backbone's maps of them (C, h, w) stand for the images.
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
        views: ViewStore | None = None,
    ) -> None:
        check_possible(index, shot)
        self.index, self.files, self.classes, self.shot = index, files, list(classes), shot
        self.augmentation, self.seed, self.epoch = augmentation, seed, epoch
        self.ann_type, self.max_side, self.views = ann_type, max_side, views
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
        return {
            "query": query,
            "support": torch.stack([image for image, _ in support]),
            "support_mask": torch.stack([_tensor(mask) for _, mask in support]),
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
    ) -> tuple[torch.Tensor, Mask]:
        """An image as the network takes it, changed at random, and the mask of the class in it (H, W)."""
        if self.views:
            number = rng.randrange(self.views.count)
            return self.views.read(self.files, name, class_id, -1 - number if pasted else number)
        return _changed(self, name, class_id, ann_type, rng, pasted)


class TrainingViews(Dataset[Item]):
    """The given views of training images, each one random change that is a function of its (name, class, number).

    Item: image (3, H, W) float32 normalised, mask (H, W) uint8 as in TrainingEpisodes. UserError as there.
    """

    def __init__(
        self,
        views: Sequence[View],
        index: ImageIndex,
        files: ImageMaskStore,
        augmentation: Augmentation,
        max_side: int | None = None,
    ) -> None:
        self.views, self.index, self.files = views, index, files
        self.augmentation, self.max_side = augmentation, max_side

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, item: int) -> Item:
        name, class_id, number = self.views[item]
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
    cfg: Config, episodes: Sequence[Episode], files: ImageMaskStore, classes: Sequence[int]
) -> EvaluationEpisodes:
    """The test episodes of a config."""
    squash = cfg.protocol == "hsnet"
    return EvaluationEpisodes(
        episodes, files, classes, cfg.val_size, cfg.ann_type, cfg.max_side, squash, cfg.metric_size
    )


def train_augmentation(cfg: Config) -> Augmentation:
    """How meta-training changes images."""
    rotation = (cfg.rotate_min, cfg.rotate_max)
    return Augmentation(cfg.train_h, cfg.train_w, (cfg.scale_min, cfg.scale_max), rotation, KEEP_OBJECT)


def train_dataset(
    cfg: Config,
    index: ImageIndex,
    files: ImageMaskStore,
    classes: Sequence[int],
    seed: int,
    epoch: int,
    views: ViewStore | None = None,
) -> TrainingEpisodes:
    """The meta-training episodes of one epoch of a config."""
    shares, read = (cfg.hard_queries, cfg.absent_queries, cfg.paste_queries), (cfg.ann_type, cfg.max_side)
    return TrainingEpisodes(
        index, files, classes, cfg.shot, train_augmentation(cfg), seed, epoch, *read, *shares, views
    )


def base_train_dataset(cfg: Config, seed: int, epoch: int) -> BaseTraining:
    """One epoch of the base learner's images: the whole training list, novel classes as background."""
    scales, rotation = (cfg.base_scale_min, cfg.base_scale_max), (cfg.rotate_min, cfg.rotate_max)
    augmentation = Augmentation(cfg.base_train_h, cfg.base_train_h, scales, rotation, keep_object=0)
    classes = config_classes(cfg, "train")
    return BaseTraining(list_files(cfg, "train"), classes, augmentation, seed, epoch, cfg.max_side)


def base_val_dataset(cfg: Config) -> BaseValidation:
    """The base learner's validation images: the whole validation list, novel classes as background."""
    return BaseValidation(list_files(cfg, "val"), config_classes(cfg, "train"), cfg.base_train_h, cfg.max_side)


def collate(items: Sequence[Item]) -> Item:
    """A batch: tensors are stacked where their shapes agree, else listed; numbers become (B,) int64, names a list."""
    return {key: _collate([item[key] for item in items]) for key in items[0]}


def _collate(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values) if len({value.shape for value in values}) == 1 else values
    return torch.tensor(values) if isinstance(values[0], int) else values


def _read_object(files: ImageMaskStore, name: str, class_id: int, max_side: int | None) -> tuple[Image, Mask]:
    """An image and the mask of one class in it: 1 where that class is, 255 kept, else 0."""
    image, mask = files.image(name, max_side), files.read(name, class_id)
    check_sizes(files.size(name) if max_side else image.shape[:2], mask, *files[name])
    if not (mask == 1).any() and not files.may_be_empty:
        raise UserError(f"{files[name][1]}: no pixel of class {class_id}; draw the episodes from the masks as they are")
    return image.astype(np.float32), mask


def _read_support(
    files: ImageMaskStore, name: str, class_id: int, ann_type: str, max_side: int | None
) -> tuple[Image, Mask]:
    image, mask = _read_object(files, name, class_id, max_side)
    return image, fill_boxes(mask) if ann_type == "bbox" else mask


def _changed(
    data: TrainingEpisodes | TrainingViews, name: str, class_id: int, ann_type: str, rng: random.Random, pasted: bool
) -> tuple[torch.Tensor, Mask]:
    """An image, normalised, and the mask of the class in it, changed at random.

    With `pasted` an object of a wanted class that it lacks lies over it, unless it has them all.
    """
    index, files, max_side = data.index, data.files, data.max_side
    image, mask = data.augmentation(*_read_support(files, name, class_id, ann_type, max_side), rng)
    if pasted and (absent := absent_classes(index, name)):
        other = rng.choice(absent)
        image, mask = paste(image, mask, *_read_object(files, rng.choice(index.by_class[other]), other, max_side), rng)
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

"""Episodes whose queries are labelled with several classes: N-way as PANet evaluates, generalized as BAM does."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.benchmarks.base import ImageMaskStore
from dataset.episode import draw_support, released_streams
from dataset.reading import Mask
from dataset.transform import fit_image, fit_mask, pad_to_square, without_ignored
from util.errors import UserError
from util.image import ImageRule, normalise
from util.pixels import IGNORE

Contents = Mapping[str, Sequence[int]]  # image -> the classes in its mask, however small


@dataclass(frozen=True)
class MultiEpisode:
    """A query, the classes that have supports, K for each, and the class that every label of the truth stands for."""

    query: str
    classes: list[int]
    support: list[list[str]]
    labels: dict[int, int]  # label -> class


def class_lists(contents: Contents, classes: Sequence[int], least: int) -> dict[int, list[str]]:
    """The images of each class in list order; UserError for one with fewer than `least`."""
    lists = {c: [image for image, present in contents.items() if c in present] for c in classes}
    for class_id, images in lists.items():
        if len(images) < least:
            raise UserError(f"class {class_id}: {len(images)} images, but an episode needs {least}; lower shot")
    return lists


def draw_ways(
    contents: Contents, novel: Sequence[int], ways: int, shot: int, count: int, seed: int, label_all: bool
) -> list[MultiEpisode]:
    """PANet's draws: the query's place is drawn once for a run, then classes and images of every episode.

    `label_all`: the truth has all classes of the episode, else only the query's own (COCO). UserError for too few
    classes or images.
    """
    if not 1 <= ways <= len(novel):
        raise UserError(f"--ways {ways}: the fold has {len(novel)} classes; choose 1 to {len(novel)}")
    lists, rng = class_lists(contents, novel, shot + 1), random.Random(seed)
    (place,) = rng.choices(range(ways), k=1)
    episodes = []
    for _ in range(count):
        classes = rng.sample(list(novel), ways)
        drawn = [rng.sample(lists[c], shot + (number == place)) for number, c in enumerate(classes)]
        labels = {number: c for number, c in enumerate(classes, 1) if label_all or number == place + 1}
        episodes.append(MultiEpisode(drawn[place][-1], classes, [images[:shot] for images in drawn], labels))
    return episodes


def draw_generalized(
    contents: Contents, base: Sequence[int], novel: Sequence[int], shot: int, count: int, seed: int, workers: int
) -> list[MultiEpisode]:
    """BAM's draws: the list in order, one of its novel classes if it has no base class, else any; base labels first."""
    lists = class_lists(contents, novel, shot + 1)
    images, passes, own = list(contents), released_streams(seed, workers), dict(enumerate(base, 1))
    episodes: list[MultiEpisode] = []
    while len(episodes) < count:
        streams = next(passes)
        for number, query in enumerate(images[: count - len(episodes)]):
            rng, present = streams[number % workers], set(contents[query])
            fitting = [c for c in novel if c in present] if not present & set(base) else []
            class_id = rng.choice(fitting or list(novel))
            support = draw_support(lists[class_id], query, shot, rng)
            episodes.append(MultiEpisode(query, [class_id], [support], own | {len(own) + 1: class_id}))
    return episodes


class MultiEpisodes(Dataset[dict[str, Any]]):
    """Item: query (3, S, S), support (N, K, 3, S, S) normalised, support_mask (N, K, S, S) and truth (h, w) of labels.

    `fit` "square" squashes images to S x S and the truth with them; "padded" brings the longer side to S, cuts both
    sides to multiples of 8 and puts the image top left on zeros, and the truth on a square of its own longer side
    (255). Ignored pixels of support masks become background unless `keep_ignored`.
    """

    def __init__(
        self,
        episodes: Sequence[MultiEpisode],
        contents: Contents,
        files: ImageMaskStore,
        size: int,
        fit: Literal["square", "padded"],
        keep_ignored: bool = True,
    ) -> None:
        self.episodes, self.contents, self.files, self.size = episodes, contents, files, size
        self.rule, self.keep_ignored = ImageRule(fit, padding="mean"), keep_ignored  # which becomes 0
        self.mask_rule = ImageRule(fit, "antialias" if fit == "square" else "opencv")

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> dict[str, Any]:
        episode = self.episodes[number]
        pairs = [(c, name) for c, names in zip(episode.classes, episode.support, strict=True) for name in names[::-1]]
        shots = len(episode.classes), len(episode.support[0])
        truth, is_square = self._truth(episode), self.rule.fit == "square"
        truth = fit_mask(truth, self.size, self.mask_rule) if is_square else pad_to_square(truth)
        return {
            "query": self._image(episode.query),
            "support": torch.stack([self._image(name) for _, name in pairs]).unflatten(0, shots),
            "support_mask": torch.stack([self._mask(name, c) for c, name in pairs]).unflatten(0, shots),
            "truth": torch.from_numpy(truth),
            "number": number,
        }

    def _truth(self, episode: MultiEpisode) -> Mask:
        """The label of every pixel (h, w), 0 where none of the episode's classes is, 255 kept."""
        label_of = {class_id: label for label, class_id in episode.labels.items()}
        shown = self.contents[episode.query] or list(label_of)[:1]  # any class's mask has the ignored pixels
        masks = {class_id: self.files.read(episode.query, class_id) for class_id in shown}
        first = masks[shown[0]]
        truth = np.where(first == IGNORE, first, 0).astype(np.uint8)
        for class_id, mask in masks.items():
            truth[mask == 1] = label_of.get(class_id, 0)
        return truth

    def _mask(self, name: str, class_id: int) -> torch.Tensor:
        mask = self.files.read(name, class_id)
        mask = mask if self.keep_ignored else without_ignored(mask)
        return torch.from_numpy(fit_mask(mask, self.size, self.mask_rule, fill=0))

    def _image(self, name: str) -> torch.Tensor:
        image = self.files.image(name).astype(np.float32)
        return normalise(fit_image(image, self.size, self.rule))

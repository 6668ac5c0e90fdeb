"""Which images count for which class of a fold, and how many episodes are drawn from them."""

from dataclasses import replace

from dataset.benchmarks.base import ImageIndex, ImageMaskStore, Mode
from dataset.benchmarks.table import open_benchmark
from util.config import Config
from util.errors import UserError

__all__ = ["ImageIndex", "ImageMaskStore", "Mode", "episode_count", "load_index", "validation_count"]

VALIDATION_EPISODES = {"coco": 4000}  # where the config does not say how many; other sets: 1000
VALIDATION_PASSES = 10  # over the validation images, above which more episodes only repeat the same queries


def load_index(cfg: Config, mode: Mode) -> tuple[ImageIndex, ImageMaskStore]:
    """Index of the fold's training or validation images, and the files of each; see the benchmark's `load`.

    Without the classes that have fewer than `min_class_images`, if that is set: they are not drawn and in no mean.
    """
    index, files = open_benchmark(cfg).load(mode)
    return (index, files) if cfg.min_class_images is None else (without_rare(index, cfg.min_class_images), files)


def without_rare(index: ImageIndex, least: int) -> ImageIndex:
    """The index without classes of fewer than `least` images, and without images in which no other class counts.

    UserError when no class is left.
    """
    by_class = {class_id: images for class_id, images in index.by_class.items() if len(images) >= least}
    if not by_class:
        raise UserError(f"min_class_images: no class has {least} images; lower it")
    kept = {image for images in by_class.values() for image in images}
    parts = tuple(without_rare(part, least) for part in index.parts)
    return replace(index, images=[image for image in index.images if image in kept], by_class=by_class, parts=parts)


def episode_count(cfg: Config, index: ImageIndex) -> int:
    """How many episodes a test of the benchmark has: `test_episodes`, or as many as the benchmark is known by."""
    return cfg.test_episodes or open_benchmark(cfg).episodes(index)


def validation_count(cfg: Config, index: ImageIndex) -> int:
    """How many episodes a validation has: `val_episodes`, or 1000 (COCO 4000), in ten passes over the list at most."""
    usual = VALIDATION_EPISODES.get(cfg.data_set, 1000)
    return cfg.val_episodes or min(usual, VALIDATION_PASSES * len(index.images))

"""Which images count for which class of a fold: the benchmark of a config, asked in one line."""

from dataset.benchmarks.base import Files, ImageIndex, Mode, fold_classes
from dataset.benchmarks.coco import COCO_CLASSES
from dataset.benchmarks.pascal import PASCAL_CLASSES
from dataset.benchmarks.table import open_benchmark, test_config
from dataset.lists import locate, read_list
from util.config import Config

__all__ = ["COCO_CLASSES", "PASCAL_CLASSES", "Files", "ImageIndex", "Mode", "fold_classes", "locate", "read_list"]
__all__ += ["class_names", "config_classes", "episode_count", "list_files", "load_index", "test_config"]


def config_classes(cfg: Config, mode: Mode) -> list[int]:
    """The classes wanted in a mode, ascending: base classes for training, novel classes for validation and testing."""
    return open_benchmark(cfg).wanted(mode)


def class_names(cfg: Config) -> dict[int, str]:
    """Name of every class by its number; UserError when they cannot be read or are not num_classes."""
    return open_benchmark(cfg).names()


def list_files(cfg: Config, mode: Mode) -> Files:
    """Image and mask file of every image in a mode's list, in list order; UserError names an image that is missing."""
    return open_benchmark(cfg).base_files(mode)


def load_index(cfg: Config, mode: Mode) -> tuple[ImageIndex, Files]:
    """Index of the fold's training or validation images, and the files of each; see the benchmark's `load`."""
    return open_benchmark(cfg).load(mode)


def episode_count(cfg: Config, index: ImageIndex) -> int:
    """How many episodes a test of the benchmark has if nobody says another number."""
    if cfg.test_episodes is not None:
        return cfg.test_episodes
    return open_benchmark(cfg).EPISODES or len(index.hsnet.lines) or len(index.images)

"""The names of the benchmarks: the value of `data_set`; any other is a data set of one's own."""

from dataset.benchmarks.base import Benchmark
from dataset.benchmarks.coco import Coco
from dataset.benchmarks.layout import ListedMasks
from dataset.benchmarks.pascal import Pascal
from util.config import Config

BENCHMARKS: dict[str, type[Benchmark]] = {"pascal": Pascal, "coco": Coco}


def open_benchmark(cfg: Config) -> Benchmark:
    """The benchmark that a config names."""
    return BENCHMARKS.get(cfg.data_set, ListedMasks)(cfg)

"""The names of the benchmarks: values of `data_set` and `test_set`; any other `data_set` is one's own."""

from collections import OrderedDict

from dataset.benchmarks.base import Benchmark
from dataset.benchmarks.chest_xray import ChestXray
from dataset.benchmarks.coco import Coco
from dataset.benchmarks.coco2pascal import Coco2Pascal
from dataset.benchmarks.deepglobe import DeepGlobe
from dataset.benchmarks.fss1000 import Fss1000
from dataset.benchmarks.isaid5i import Isaid
from dataset.benchmarks.isic2018 import Isic2018
from dataset.benchmarks.layout import ListedMasks
from dataset.benchmarks.lvis92i import Lvis92i
from dataset.benchmarks.mixed import Mixed
from dataset.benchmarks.msrc import Msrc
from dataset.benchmarks.paco_part import PacoPart
from dataset.benchmarks.pascal import Pascal
from dataset.benchmarks.pascal_part import PascalPart
from dataset.benchmarks.suim import Suim
from util.config import Config
from util.errors import UserError

BENCHMARKS: dict[str, type[Benchmark]] = {
    "pascal": Pascal,
    "coco": Coco,
    "msrc": Msrc,
    "mixed": Mixed,
    "coco2pascal": Coco2Pascal,
    "fss1000": Fss1000,
    "isaid5i": Isaid,
    "deepglobe": DeepGlobe,
    "isic2018": Isic2018,
    "chest_xray": ChestXray,
    "suim": Suim,
    "lvis92i": Lvis92i,
    "pascal_part": PascalPart,
    "paco_part": PacoPart,
}
MAX_OPEN = 4  # benchmarks that a process keeps open: what is trained on, what is tested on

_open: OrderedDict[str, Benchmark] = OrderedDict()  # by all keys of their configs


def open_benchmark(cfg: Config) -> Benchmark:
    """The benchmark that a config names as `data_set`; once opened, the same for every equal config.

    A benchmark may hold an annotation file of hundreds of megabytes.
    """
    key = repr(cfg)
    if key not in _open:
        _open[key] = BENCHMARKS.get(cfg.data_set, ListedMasks)(cfg)
        if len(_open) > MAX_OPEN:
            _open.popitem(last=False)
    return _open[key]


def test_config(cfg: Config) -> Config:
    """The config of what is tested on: `cfg` itself, or with `test_set`, `test_root` and `test_fold` in their place.

    UserError for a benchmark or fold that does not exist.
    """
    split = cfg.split if cfg.test_fold is None else cfg.test_fold
    if cfg.test_set is None:
        return cfg.model_copy(update={"split": split})
    kind = BENCHMARKS.get(cfg.test_set)
    if kind is None:
        raise UserError(f"test_set: {cfg.test_set!r} is unknown; choose {', '.join(BENCHMARKS)}")
    if kind.FOLDS == 1 and cfg.test_fold is None:
        split = 0
    if split >= kind.FOLDS:
        raise UserError(f"test_fold: {split}, but {cfg.test_set} has {kind.FOLDS} folds; choose 0 to {kind.FOLDS - 1}")
    place = {"data_set": cfg.test_set, "data_root": cfg.test_root or kind.ROOT, "split": split}
    sizes = {"num_classes": len(kind.CLASSES), "folds": kind.FOLDS}
    return cfg.model_copy(update={**place, **sizes, "class_file": None, "released_lists": None})

"""How fast a loader worker reads images for training, of generated ones."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from dataset.benchmarks.table import open_benchmark
from dataset.dataset import collate, train_dataset
from dataset.demo import write_demo
from dataset.index import load_index
from engine.loader import StepPlan, load_steps
from util.config import Config, load_config
from util.distributed import ProcessGroup

DEMO = Path(__file__).resolve().parent.parent / "config" / "demo.yaml"
PICTURE_SIZE = 430  # pixels along a side, as many as PASCAL's 500 x 375 have


def measure_loading(cfg: Config) -> dict[str, Any]:
    """Images per second that one loader worker reads and changes at random for training, of generated JPEG files.

    To be called in a process of its own.
    """
    with TemporaryDirectory() as folder:
        write_demo(folder, images_per_class=3 + cfg.shot, size=PICTURE_SIZE)
        sizes = {key: getattr(cfg, key) for key in ("train_h", "train_w", "shot")}
        data = load_config(DEMO).model_copy(update={"data_root": folder, "train_list": "all", **sizes})
        index, files = load_index(data, "train")
        dataset = train_dataset(data, index, files, open_benchmark(data).wanted("train"), seed=0, epoch=1)
        batches = StepPlan(len(dataset), cfg.batch_size, 1, ProcessGroup(torch.device("cpu"))).batches(seed=0)
        steps = load_steps(dataset, batches, 1, 1, collate)
        next(steps)  # the worker has started
        start = perf_counter()
        images = sum(len(batch["names"]) * (1 + cfg.shot) for (batch,) in steps)
        return {"pictures_per_second": images / (perf_counter() - start), "size": PICTURE_SIZE}

"""A step of training and its loader as things to be measured: random weights, generated pictures."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from dataset.dataset import collate, train_dataset
from dataset.demo import write_demo
from dataset.index import config_classes, load_index
from engine.loader import StepPlan, load_steps
from engine.optim import autocast, make_sgd, make_trunk_adamw
from model.build import build_model
from model.loss import episode_loss
from tools.measure import count_flops, peak_memory
from tools.stages import GIGA, MEGABYTE, Images, as_operator, random_images
from util.config import Config, load_config
from util.distributed import World

DEMO = Path(__file__).resolve().parent.parent / "config" / "demo.yaml"
PICTURE_SIZE = 430  # pixels along a side, as many as PASCAL's 500 x 375 have


class TrainingStep:
    """A step of training on one batch of noise, with the optimisers that training has."""

    def __init__(self, cfg: Config) -> None:
        self.amp, self.model = cfg.amp, build_model(cfg, pretrained=False).train()
        images = random_images(cfg.train_h, cfg.shot)
        self.images = Images(*(x.repeat(cfg.batch_size, *[1] * (x.dim() - 1)) for x in images))
        self.truth = self.images.support_mask[:, 0].long()
        sgd = make_sgd(self.model.learnable_groups(), cfg.momentum, cfg.weight_decay)
        trunk = self.model.trunk
        adamw = make_trunk_adamw(trunk, cfg.trunk_lr, cfg.batch_size, cfg.trunk_weight_decay)
        self.optimizers: list[Optimizer] = [sgd, *([adamw] if len(trunk.blocks) else [])]

    def loss(self) -> Tensor:
        """The forward pass."""
        with autocast(self.amp, torch.device("cpu")):
            scores = self.model(*self.images, left_out=torch.zeros(len(self.truth), dtype=torch.int64))
            return torch.stack([*episode_loss(scores, self.truth).values()]).sum()

    def seconds(self) -> dict[str, float]:
        """Do it; seconds of its parts."""
        start = perf_counter()
        loss = self.loss()
        forward = perf_counter()
        loss.backward()
        backward = perf_counter()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {"forward": forward - start, "backward": backward - forward, "optimiser": perf_counter() - backward}


def measure_training(cfg: Config, repeats: int) -> dict[str, float]:
    """Seconds of a training step's parts, each its fastest, and peak memory; to be called in a process of its own."""
    step = TrainingStep(cfg)
    step.seconds()
    parts = [step.seconds() for _ in range(repeats)]
    return {name: min(part[name] for part in parts) for name in parts[0]} | {"peak_memory_mb": peak_memory() / MEGABYTE}


def training_gflops(cfg: Config) -> float:
    """What a training step needs; nothing is computed."""
    step = TrainingStep(as_operator(cfg))
    with FakeTensorMode(allow_non_fake_inputs=True):
        return count_flops(lambda: step.loss().backward()) / GIGA


def measure_loading(cfg: Config) -> dict[str, Any]:
    """Pictures per second that one loader worker reads and changes at random for training, of generated JPEG files.

    To be called in a process of its own.
    """
    with TemporaryDirectory() as folder:
        write_demo(folder, images_per_class=3 + cfg.shot, size=PICTURE_SIZE)
        sizes = {key: getattr(cfg, key) for key in ("train_h", "train_w", "shot")}
        data = load_config(DEMO).model_copy(update={"data_root": folder, "train_list": "all", **sizes})
        index, files = load_index(data, "train")
        dataset = train_dataset(data, index, files, config_classes(data, "train"), seed=0, epoch=1)
        batches = StepPlan(len(dataset), cfg.batch_size, 1, World(torch.device("cpu"))).batches(seed=0)
        steps = load_steps(dataset, batches, 1, 1, collate)
        next(steps)  # the worker has started
        start = perf_counter()
        pictures = sum(len(batch["names"]) * (1 + cfg.shot) for (batch,) in steps)
        return {"pictures_per_second": pictures / (perf_counter() - start), "size": PICTURE_SIZE}

"""A step of training as a thing to be measured: random weights, noise for images."""

from time import perf_counter

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from engine.optim import autocast, make_sgd, make_trunk_adamw
from model.build import build_model
from model.loss import episode_loss
from tools.measure import count_flops, peak_memory
from tools.stages import GIGA, MEGABYTE, Images, as_operator, random_images
from util.config import Config


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

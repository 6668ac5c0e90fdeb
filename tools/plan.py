"""What training commands amount to, before they begin; `tools/reproduce.sh` asks `python -m tools.plan` on its input.

Every line is an entry point with its arguments, such as `train.py --config FILE --opts seed 3`.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.lists import locate, read_list
from dataset.prepare.known import FOLD_SIZES
from model.build import build_base_learner, build_model
from util.arguments import experiment_config, training_arguments
from util.config import Config
from util.distributed import pick_device
from util.errors import UserError, run_main

STAGES = {"train_base.py": 1, "train.py": 2}


class Training(NamedTuple):
    """One command that trains."""

    stage: int
    cfg: Config

    @property
    def epochs(self) -> int:
        """At most; a training may stop early."""
        return self.cfg.base_epochs if self.stage == 1 else self.cfg.epochs

    @property
    def items(self) -> int:
        """Images or episodes of all epochs, at most; 0 where that is not known."""
        sizes = FOLD_SIZES.get(self.cfg.data_set, {}).get("train", ())
        known = [size or max(filter(None, sizes)) for size in sizes][self.cfg.split : self.cfg.split + 1]
        path = locate(Path(self.cfg.data_root), self.cfg.train_list_file)
        return self.epochs * (known[0] if known else len(read_list(path)) if path.is_file() else 0)


def trainings(lines: Iterable[str]) -> list[Training]:
    """The commands that train."""
    words = [line.split() for line in lines if line.split()[:1] and line.split()[0] in STAGES]
    stages = [(STAGES[script], arguments) for script, *arguments in words]
    return [Training(stage, experiment_config(training_arguments("", given), stage)) for stage, given in stages]


def seconds_per_item(training: Training) -> float:
    """Of a step on noise, forward and backward, on the device that training would take."""
    cfg, device = training.cfg, pick_device(training.cfg.device)
    size = cfg.base_train_h if training.stage == 1 else cfg.train_h
    items = 2 if training.stage == 1 else 1  # as few as a step can have
    images, truth = torch.rand(items, 3, size, size, device=device), torch.ones(items, size, size, device=device)
    step: Callable[[], Tensor]
    if training.stage == 1:
        learner = build_base_learner(cfg, pretrained=False).to(device).train()
        step = lambda: F.cross_entropy(learner(images), truth.long())  # noqa: E731
    else:
        method = build_model(cfg, pretrained=False).to(device).train()
        shots, masks = (x[:, None].repeat_interleave(cfg.shot, 1) for x in (images, truth))
        classes = torch.zeros(items, dtype=torch.int64, device=device)
        step = lambda: torch.stack(  # noqa: E731
            [*method.losses(method(images, shots, masks, classes), truth.long()).values()]
        ).sum()
    for _ in range(1 if device.type == "cpu" else 2):  # on others the first makes everything ready
        start = perf_counter()
        step().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()
    return (perf_counter() - start) / items


def describe(found: list[Training], measure: Callable[[Training], float] = seconds_per_item) -> str:
    """A line for each stage that is to be trained, with the time that one process of this machine needs."""
    lines = []
    for stage, what in ((1, "base learners"), (2, "networks")):
        ours = [training for training in found if training.stage == stage]
        if not ours:
            continue
        epochs, items = sum(t.epochs for t in ours), sum(t.items for t in ours)
        length = "how long it takes is not known without the data"
        if items:
            days = measure(ours[0]) * items / 86400
            time = f"{days:.0f} days" if days > 3 else f"{24 * days:.1f} hours"
            length = f"{items} images, about {time} in one process on this machine"
        lines.append(f"to train: {len(ours)} {what}, at most {epochs} epochs; {length}")
    return "\n".join(lines)


def main() -> None:
    """Read, measure, print."""
    try:
        if text := describe(trainings(sys.stdin)):
            print(text)
    except UserError as error:  # the commands themselves will say so
        print(f"how long it takes is not known: {error}")


if __name__ == "__main__":
    run_main(main)

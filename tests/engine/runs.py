"""A linear network with dropout on points, for tests of a run's mechanics."""

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from engine.learner import Learner, Output
from engine.loader import StepPlan
from engine.optim import make_sgd, make_trunk_adamw, poly_rate, set_rates
from engine.paths import Paths
from engine.run import Run
from engine.snapshot import read_snapshot, snapshots
from util.config import Config, load_config
from util.distributed import ProcessGroup, connect
from util.rng import seed_all

ITEMS, STEPS, EPOCHS = 14, 3, 3
Observe = Callable[[Run], None]


class Points(Dataset[dict[str, Any]]):
    """Items that depend on the epoch, as augmented ones do."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, item: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 * self.epoch + item)
        points, labels = torch.randn(6, 4, generator=generator), torch.randint(0, 2, (6,), generator=generator)
        return {"points": points, "label": labels, "names": [f"item{item}"]}


def collate(items: list[dict]) -> dict:
    batch = {key: [item[key] for item in items] for key in items[0]}
    return {**batch, "points": torch.stack(batch["points"]), "label": torch.stack(batch["label"])}


def forward(network: nn.Module, batch: dict[str, Tensor]) -> Output:
    logits, label = network(batch["points"]).flatten(0, 1), batch["label"].flatten()
    loss = nn.functional.cross_entropy(logits, label)
    accuracy = torch.stack([(logits.argmax(1) == label).sum(), torch.tensor(len(label))])
    losses = {"cross_entropy": loss, "dice": logits.square().mean()}
    return Output(losses, {"foreground IoU": accuracy, "points": torch.tensor([len(label), 100])}, {"dice"})


def drive(
    folder: Path, observe: Observe = lambda run: None, scores: list[float] | None = None, **keys: object
) -> dict[str, Any]:
    """A whole run, shaped as those in train.py and train_base.py; the last snapshot."""
    cfg = config(folder, **keys)
    with connect("cpu") as process_group:
        run = build(cfg, process_group, folder)
        with run.started():
            for epoch in run.epochs():
                for batches in run.batches(Points(epoch), collate):
                    set_rates(run.learner.optimizers["rest"], poly_rate(0.05, run.iteration, run.iterations, 0.9), 0)
                    report = run.learner.accumulate(batches, forward, "label", run.seeds())
                    observe(run)
                    run.stepped(report, 0.05, run.learner.step())
                run.validate(epoch, partial(measure, run, epoch, scores))
        return last_snapshot(folder)


def measure(run: Run, epoch: int, scores: list[float] | None) -> dict[str, float]:
    torch.rand(random.randint(1, 9))  # whatever validation draws, training must not notice
    weight = next(iter(run.learner.model.parameters()))
    return {"miou": scores[epoch - 1] if scores else weight.abs().mean().item()}


def config(folder: Path, **keys: object) -> Config:
    settings = {"exp": folder, "loader_workers": 0, "epochs": EPOCHS, "print_freq": 2, "device": "cpu", **keys}
    words = [str(word) for pair in settings.items() for word in pair]
    return load_config(Path(__file__).parents[2] / "config/base/pascal.yaml", words)


def build(cfg: Config, process_group: ProcessGroup, folder: Path) -> Run:
    seed_all(cfg.manual_seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    optimizers = {
        "rest": make_sgd([model[0].parameters()], 0.9, 1e-4),
        "trunk": make_trunk_adamw(model[2], 0.01, 2, 0.01),
    }
    learner = Learner(model, optimizers, process_group, cfg.amp, max_skipped=cfg.max_skipped_steps)
    plan = StepPlan(ITEMS, cfg.batch_size, cfg.accumulate, process_group).check("batch_size")
    paths = Paths(folder, best=folder / "snapshot" / "best_1shot.pth", numbered="train")
    return Run(cfg, paths, plan, learner, cfg.epochs, cfg.stop_interval)


def last_snapshot(folder: Path) -> dict[str, Any]:
    return read_snapshot(list(snapshots(folder / "snapshot", "state").values())[-1])


def assert_same(one: object, other: object, where: str = "") -> None:
    """Bit for bit, whatever is inside."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where  # type: ignore[arg-type]
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where  # type: ignore[attr-defined]
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")  # type: ignore[index]
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where  # type: ignore[arg-type]
        for number, (a, b) in enumerate(zip(one, other, strict=True)):  # type: ignore[call-overload]
            assert_same(a, b, f"{where}/{number}")
    else:
        assert one == other, where


def signal_at(step: int, number: signal.Signals = signal.SIGTERM) -> Observe:
    """Send this process a signal in the middle of a step of the run, counted over epochs."""

    def observe(run: Run) -> None:
        if run.iteration == step:
            os.kill(os.getpid(), number)

    return observe


KEYS: dict[str, Any] = {"batch_size": 2, "accumulate": 2}  # 14 items: three steps an epoch, two items left over


def assert_end(whole: tuple[Path, dict[str, Any]], resumed: dict[str, Any]) -> None:
    """The run ended as the uninterrupted one; its folder's name in the config aside."""
    assert_same({**whole[1], "config": None}, {**resumed, "config": None})

"""Gradients of the real network on real episodes, spread in every way over processes and rounds."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

import train
import train_base
from dataset.benchmarks.table import open_benchmark
from dataset.dataset import BaseImages, TrainingEpisodes, collate
from dataset.index import load_index
from engine.learner import Learner, NotFiniteError, Output, Report
from engine.loader import StepPlan, load_steps
from engine.optim import make_sgd
from model.build import build_base_learner, build_model
from model.loss import cross_entropy
from tests.processes import run_processes
from tests.toy import toy_config, write_toy
from util.config import Config
from util.distributed import ProcessGroup, connect
from util.pixels import IGNORE

Spread = tuple[int, int, int]  # processes, batch, accumulate


class Doubled(nn.Module):
    """The network in float64, so that gradients differ by rounding far below what a wrong weight would change."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, *images: Tensor, **labels: Tensor) -> Any:
        return self.network(*(x.double() if x.is_floating_point() else x for x in images), **labels)


def without_dropout(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return network


def meta_gradients(cfg: Config) -> tuple[dict[str, Tensor], Report]:
    """The gradients of one step of meta-training in this process, and its report."""
    torch.manual_seed(1)
    method = build_model(cfg, pretrained=False).train()
    network = Doubled(without_dropout(method))
    index, files = load_index(cfg, "train")
    dataset = TrainingEpisodes(cfg, index, files, open_benchmark(cfg).wanted("train"), seed=5, epoch=1)
    return gradients(cfg, network, dataset, partial(train.forward, method), "query_mask", cfg.batch_size)


def base_gradients(cfg: Config) -> tuple[dict[str, Tensor], Report]:
    """The same of the base learner, its batch norms at rest: on CPUs each process has its own statistics."""
    torch.manual_seed(1)
    network = Doubled(without_dropout(build_base_learner(cfg, pretrained=False)).eval())
    return gradients(cfg, network, BaseImages(cfg, "train", 5, 1), train_base.forward, "label", cfg.base_batch_size)


def gradients(cfg: Config, network: nn.Module, dataset: Any, forward: Any, target: str, batch: int) -> Any:
    with connect("cpu") as process_group:
        meta = target == "query_mask"
        learner = Learner(network, {"all": make_sgd([network.parameters()], 0.9, 0)}, process_group, partial=meta)
        plan = StepPlan(len(dataset), batch, cfg.accumulate, process_group)
        batches = next(load_steps(dataset, plan.batches(seed=3), cfg.accumulate, 0, collate))
        if (
            process_group.is_main
        ):  # most of the step's first item is ignored, or the shares of the pixels might not matter
            batches[0][target][0, torch.arange(33) != 16] = IGNORE
        report = learner.accumulate(batches, forward, target)
        # Copies: gradients are views of large buckets, which would be pickled whole for each of them.
        found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        return found, report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_toy(folder / "toy", train=16)
    return folder


def meta_config(folder: Path, spread: Spread) -> Config:
    return toy_config(folder, batch_size=spread[1], accumulate=spread[2])


def base_config(folder: Path, spread: Spread) -> Config:
    return toy_config(folder, base_batch_size=spread[1], accumulate=spread[2])


@pytest.mark.parametrize(
    ("gradients_of", "config", "spreads"),
    [
        (meta_gradients, meta_config, [(1, 6, 1), (2, 3, 1), (3, 2, 1), (1, 2, 3), (2, 1, 3)]),
        (base_gradients, base_config, [(1, 4, 1), (2, 2, 1), (1, 2, 2)]),
    ],
)
def test_gradients_do_not_depend_on_the_spread(
    folder: Path, gradients_of: Any, config: Callable[[Path, Spread], Config], spreads: list[Spread]
) -> None:
    results = {spread: run_processes(spread[0], gradients_of, config(folder, spread)) for spread in spreads}
    ((expected, report),) = results[spreads[0]]
    assert len(expected) > 20 and max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    for spread in spreads[1:]:
        for found, given in results[spread]:
            assert found.keys() == expected.keys()
            for name, gradient in found.items():
                error = (gradient - expected[name]).abs().max() / expected[name].abs().max()
                assert error < 1e-6, f"{spread}: {name}"
            assert given.metrics == report.metrics and given.metrics
            assert given.losses == pytest.approx(report.losses, rel=1e-5)


def two_optimizers(amp: str, compiled: bool = False) -> tuple[nn.Module, Learner]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizers = {f"layer{n}": make_sgd([part.parameters()], 0.9, 0) for n, part in enumerate(model.children())}
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.1
    with connect("cpu") as process_group:
        learner = Learner(model, optimizers, process_group, amp, compiled, max_skipped=3)
    if amp == "fp16":
        learner.scaler = GradScaler("cpu", init_scale=64.0)  # the usual one begins with skipping steps
    return model, learner


@pytest.mark.parametrize(
    ("amp", "compiled"),
    [("off", False), ("fp16", False), ("bf16", False), pytest.param("off", True, marks=pytest.mark.slow)],
)
def test_a_step_moves_both_optimizers(amp: str, compiled: bool) -> None:
    from tests.engine.runs import forward  # points and labels

    model, learner = two_optimizers(amp, compiled)
    batch: dict[str, Any] = {
        "points": torch.randn(2, 6, 3),
        "label": torch.randint(0, 2, (2, 6)),
        "names": [["a"], ["b"]],
    }
    expected = copy.deepcopy(model)
    output = forward(expected, batch)
    loss = sum(output.losses.values())
    loss.backward()
    report = learner.accumulate([batch], forward, "label")
    sizes = learner.step()
    tolerance = 1e-6 if amp == "off" else 2e-2
    assert report.loss == pytest.approx(loss.item(), rel=tolerance)
    for number, layer in enumerate(expected.children()):
        gradient, weights = (
            torch.cat([value.flatten() for value in values])
            for values in zip(*((p.grad, p.detach()) for p in layer.parameters()), strict=True)
        )
        assert sizes[f"gradient/layer{number}"] == pytest.approx(gradient.norm().item(), rel=tolerance)
        assert sizes[f"update/layer{number}"] == pytest.approx(
            0.1 * (gradient.norm() / weights.norm()).item(), rel=2 * tolerance
        )
    for after, before in zip(model.parameters(), expected.parameters(), strict=True):
        assert before.grad is not None and after.grad is None
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=0, atol=0.1 * tolerance)


def bad_in_one_process() -> str:
    with connect("cpu") as process_group:
        model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(3, 2))
        points = torch.full((2, 6, 3), torch.nan if process_group.rank == 1 else 1.0)
        batch = {
            "points": points,
            "label": torch.zeros(2, 6).long(),
            "names": [[f"query{process_group.rank}", "support"]],
        }
        from tests.engine.runs import forward

        with pytest.raises(NotFiniteError) as error:
            Learner(model, {}, process_group).accumulate([batch], forward, "label")
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), nn.BatchNorm1d(6).buffers(), strict=True))
        return str(error.value)


def test_all_processes_stop_at_a_loss_that_is_not_finite_in_one() -> None:
    assert run_processes(2, bad_in_one_process) == ["the loss is not finite on these items: query1 support"] * 2


def poisoned_forward(network: nn.Module, batch: dict[str, Tensor]) -> Output:
    """A loss that is `value`, and a gradient that is not finite where `bad` says so."""
    (weight, *_) = network.parameters()
    still = (weight - weight.detach()).sum()
    return Output(
        {"loss": batch["value"] + (still.abs().sqrt() if batch["bad"] else still)}, {"n": torch.ones(2).long()}
    )


def small_batch(value: float, bad: bool = False) -> dict[str, Any]:
    return {
        "value": torch.tensor(value),
        "bad": bad,
        "label": torch.zeros(1, 2).long(),
        "names": [["query", "support"]],
    }


def take(learner: Learner, value: float, bad: bool = False) -> Report:
    report = learner.accumulate([small_batch(value, bad)], poisoned_forward, "label")
    learner.step()
    return report


def one_layer(amp: str) -> tuple[nn.Linear, Learner]:
    model = nn.Linear(2, 1)
    with connect("cpu") as process_group:
        learner = Learner(model, {"all": torch.optim.SGD([model.weight], lr=0.1)}, process_group, amp, max_skipped=3)
    return model, learner


@pytest.mark.parametrize(
    ("value", "bad", "what"), [(torch.nan, False, "loss"), (torch.inf, False, "loss"), (1.0, True, "gradient")]
)
def test_half_precision_skips_steps_that_overflow(value: float, bad: bool, what: str) -> None:
    model, learner = one_layer("fp16")
    take(learner, 1.0)
    weights, scale = model.weight.detach().clone(), learner.scaler.get_scale()
    for number in (1, 2):
        report = take(learner, value, bad)
        assert report.losses == ({} if what == "loss" else {"loss": 1.0})
        assert torch.equal(model.weight, weights) and model.weight.grad is None
        assert learner.scaler.get_scale() == scale / 2**number and f"the {what} is not finite" in learner.problem
    take(learner, 1.0)  # the row is broken
    assert learner.problem == "" and learner.scaler.get_scale() == scale / 4 and not torch.equal(model.weight, weights)
    weights = model.weight.detach().clone()
    for _ in range(2):
        take(learner, value, bad)
    with pytest.raises(NotFiniteError, match=f"the {what} is not finite on these items: query support"):
        take(learner, value, bad)
    assert torch.equal(model.weight, weights)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize(("value", "bad", "what"), [(torch.nan, False, "loss"), (1.0, True, "gradient")])
def test_other_precisions_stop_at_once(amp: str, value: float, bad: bool, what: str) -> None:
    model, learner = one_layer(amp)
    weights = model.weight.detach().clone()
    with pytest.raises(NotFiniteError, match=f"the {what} is not finite on these items: query support"):
        take(learner, value, bad)
    assert torch.equal(model.weight, weights)


def test_a_batch_without_a_judged_pixel_is_a_step_like_any_other() -> None:
    model = nn.Conv2d(3, 2, 1)
    learner = Learner(model, {"all": make_sgd([model.parameters()], 0.0, 0.0)}, ProcessGroup(torch.device("cpu")))
    batch = {"image": torch.randn(1, 3, 4, 4), "label": torch.full((1, 4, 4), IGNORE), "names": [["a"]]}

    def forward(network: nn.Module, batch: dict[str, Tensor]) -> Output:
        return Output({"cross_entropy": cross_entropy(network(batch["image"]), batch["label"])}, {"m": torch.ones(2)})

    report = learner.accumulate([batch], forward, "label")
    assert report.loss == 0 and not learner.problem

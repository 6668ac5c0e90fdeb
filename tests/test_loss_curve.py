"""A short training takes the recorded course: on every device, in every precision, resumed, over two processes.

`python -m tests.test_loss_curve` records it anew, on a CPU in float32.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train
from engine.learner import Learner
from engine.optim import method_optimizers
from model import cpu
from model.build import build_model
from model.released import load_weights, released_state_dict
from tests.data import golden_rule
from tests.devices import on_gpu
from tests.processes import free_port, run_processes
from tests.toy import ROOT, toy_config
from util.distributed import ProcessGroup, connect

RECORDED = ROOT / "tests" / "data" / "loss_curve.json"
STEPS, BATCHES = 6, 2
Note = Callable[[str, float], None]


class Training:
    """Steps on the same four episodes, in two batches; weights and images are the golden rule's, without dropout."""

    def __init__(self, process_group: ProcessGroup, amp: str = "off", compiled: bool = False) -> None:
        cfg = toy_config(Path("nowhere"), amp=amp, batch_size=2, accumulate=BATCHES, trunk_lr=3e-3, base_lr=0.02)
        method = build_model(cfg, pretrained=False)
        load_weights(method, golden_rule.weights({k: v.shape for k, v in released_state_dict(method).items()}))
        for module in method.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0
        self.method, self.process_group = method.to(process_group.device).train(), process_group
        self.schedules = method_optimizers(method, cfg)
        optimizers = {name: each.optimizer for name, each in self.schedules.items()}
        self.learner = Learner(self.method, optimizers, process_group, amp, compiled, partial=True)

    def losses(self, steps: Sequence[int]) -> list[float]:
        """The losses of steps, each on this process's share of the batches."""
        batches = [episodes(seed) for seed in range(BATCHES)][self.process_group.rank :: self.process_group.size]
        found = []
        for step in steps:
            for schedule in self.schedules.values():
                schedule.set_rates(step, STEPS)
            found.append(self.learner.accumulate(batches, partial(train.forward, self.method), "query_mask").loss)
            self.learner.step()
        return found


def episodes(seed: int) -> dict[str, Any]:
    """Two episodes of one shot of 33 pixels."""
    query, support = (golden_rule.images(2, 33, 2 * seed + role) for role in (0, 1))
    masks = golden_rule.masks(2, 33)
    batch = {"query": query, "support": support[:, None], "support_mask": masks[:, None], "query_mask": masks.flip(0)}
    return batch | {"class_index": torch.tensor([0, 1]), "names": [["one"], ["two"]]}


def assert_recorded(found: list[float], tolerance: float, note: Note) -> None:
    """The losses are the recorded ones up to a share of them."""
    expected = json.loads(RECORDED.read_text())
    error = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
    note("largest difference", error)
    assert expected[-1] < 0.8 * expected[0] and error < tolerance, (found, expected)


def test_float32(device: torch.device, record_property: Note) -> None:
    """Resumed in the middle from what a snapshot would hold."""
    training = Training(ProcessGroup(device))
    found = training.losses(range(STEPS // 2))
    resumed = Training(ProcessGroup(device))
    resumed.learner.restore(training.learner.state())
    assert_recorded(found + resumed.losses(range(STEPS // 2, STEPS)), 2e-3, record_property)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("slow_mkl", [False, True])
def test_blocks_computed_again_give_the_same_gradients(
    amp: str, slow_mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit with dropout, where products are convolutions and where they are not."""
    monkeypatch.setattr(cpu, "FASTER", cpu.faster_functions(slow_mkl))
    monkeypatch.setattr(cpu, "SMALLEST_PRODUCT", 1)
    gradients = []
    for again in (False, True):
        training = Training(ProcessGroup(torch.device("cpu")), amp)
        training.method.trunk.checkpoint_blocks = again
        for module in training.method.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        forward = partial(train.forward, training.method)
        training.learner.accumulate([episodes(0), episodes(1)], forward, "query_mask", seeds=[1, 2])
        gradients.append([p.grad for p in training.method.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@on_gpu
def test_bf16(device: torch.device, record_property: Note) -> None:
    assert_recorded(Training(ProcessGroup(device), "bf16").losses(range(STEPS)), 0.05, record_property)


@on_gpu
def test_fp16(device: torch.device, record_property: Note) -> None:
    """With the gradient's scale, which may skip the first steps: the course starts after them."""
    training = Training(ProcessGroup(device), "fp16")
    training.learner.scaler.update(2.0**8)
    assert_recorded(training.losses(range(STEPS)), 0.02, record_property)
    record_property("scale", training.learner.scaler.get_scale())


@on_gpu
def test_compile(device: torch.device, record_property: Note) -> None:
    assert_recorded(Training(ProcessGroup(device), compiled=True).losses(range(STEPS)), 1e-2, record_property)


def one_process(device: str) -> list[float]:
    """For one of several processes."""
    with connect(device) as process_group:
        return Training(process_group).losses(range(STEPS))


def test_two_processes(record_property: Note) -> None:
    for found in run_processes(2, one_process, "cpu"):
        assert_recorded(found, 2e-3, record_property)


def one_of_two(rank: int, port: int, folder: str) -> None:
    """As torchrun starts it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    Path(folder, str(rank)).write_text(json.dumps(one_process("auto")))


@on_gpu
def test_two_gpus(device: torch.device, tmp_path: Path, record_property: Note) -> None:
    if torch.accelerator.device_count() < 2:
        pytest.skip("needs two GPUs")
    torch.multiprocessing.spawn(one_of_two, (free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert_recorded(json.loads((tmp_path / str(rank)).read_text()), 2e-3, record_property)


if __name__ == "__main__":
    course = Training(ProcessGroup(torch.device("cpu"))).losses(range(STEPS))
    RECORDED.write_text(json.dumps(course) + "\n")
    print(course)

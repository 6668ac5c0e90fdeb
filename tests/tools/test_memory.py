"""Counted memory against formulas, and against what the operating system saw."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.build import build_model
from tests.toy import ROOT, toy_config
from tools.memory import LiveBytes, step_memory


def test_live_bytes() -> None:
    x, weight = torch.randn(50, 20), torch.randn(20, 30, requires_grad=True)
    with LiveBytes() as live:
        y = (x @ weight).relu()  # the backward pass keeps the result alone
        assert (live.now, live.peak) == (4 * 50 * 30, 2 * 4 * 50 * 30)
        view = y[3:].view(-1)
        assert live.now == 4 * 50 * 30
        z = y.exp()
        del y, view
        assert live.now == 2 * 4 * 50 * 30  # y is what the backward pass needs
        del z
    assert live.now == 0


def test_a_step_keeps_weights_and_optimisers_and_more_images_save_more(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, batch_size=2)
    model = build_model(cfg, pretrained=False)
    sgd = sum(p.nbytes for group in model.learnable_groups() for p in group)
    adamw = sum(p.nbytes for p in model.trunk.parameters())
    state = sum(x.nbytes for x in model.state_dict().values())
    batch = 2 * cfg.train_h**2 * 4 * (3 + 3 + 1 + 2)  # images and mask in float32, the truth in int64
    memory = step_memory(cfg)
    assert memory.kept == pytest.approx(state + sgd + 2 * adamw + batch, rel=0.01)
    assert memory.peak > memory.kept + memory.saved
    twice = step_memory(cfg.model_copy(update={"batch_size": 4}))
    assert twice.saved == pytest.approx(2 * memory.saved, rel=0.05)
    assert step_memory(cfg.model_copy(update={"checkpoint_blocks": True})).saved < 0.8 * memory.saved


MEASURE = """
import sys
from tools.gpu.network import config
from tools.gpu.setting import CheckSetting
from tools.measure import peak_memory
from tools.memory import step_memory
from tools.training import TrainingStep
import torch

cfg = config(CheckSetting(torch.device("cuda")), train_h=241, train_w=241, val_size=241, feature_size=32, batch_size=2)
step = TrainingStep(cfg)
status = open("/proc/self/status").read()
before = int(status.split("VmRSS:")[1].split()[0]) * 1024
step.seconds(), step.seconds()
measured = peak_memory() - before
memory = step_memory(cfg)
weights = sum(p.nbytes for p in [*step.model.parameters(), *step.model.buffers(), *step.images, step.truth])
print(memory.peak - weights, measured)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_counted_memory_is_what_the_system_saw() -> None:
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # freed memory goes back at once
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    counted, measured = map(int, done.stdout.split())
    assert counted == pytest.approx(measured, rel=0.15)

"""The folder model/scan copied elsewhere: it needs PyTorch and nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OURS = ("model", "dataset", "engine", "prediction", "tools", "util")
OTHERS = ("PIL", "cv2", "matplotlib", "pycocotools", "pydantic", "scipy", "tensorboardX", "torchvision", "tqdm", "yaml")
PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[2:]))  # None: its import fails
sys.path.insert(0, sys.argv[1])
import torch
from scan import Recap, selective_scan

state = torch.rand(1, 4, 5, 8)
recap = Recap(state, state, period=3)
order = torch.stack([torch.randperm(12) for _ in range(4)])
results, weight = {}, torch.randn(1, 12, 5)
inputs = torch.randn(1, 12, 5), torch.rand(1, 4, 12, 5), -torch.rand(4, 5, 8), *torch.randn(2, 1, 4, 12, 8)
for backend in ("reference", "cpu"):
    leaves = [x.clone().requires_grad_() for x in inputs]
    y, last = selective_scan(*leaves, order, recap=recap, backend=backend)
    results[backend] = [y, last, *torch.autograd.grad((y * weight).sum() + last.sum(), leaves)]
for one, other in zip(*results.values(), strict=True):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
print("agree")
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_forward_and_backward_in_an_empty_folder(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "model" / "scan", tmp_path / "scan", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-W", "error::UserWarning", "-c", PROGRAM, str(tmp_path), *OURS, *OTHERS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "agree\n"

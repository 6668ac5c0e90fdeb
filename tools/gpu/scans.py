"""The scan's backends against float64: outputs, states, all gradients, twice the same bits."""

import itertools
import shutil
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from model.parts.order import patch_orders, plain_orders
from model.scan import Recap, selective_scan
from tools.gpu.setting import CheckSetting, NothingToCheckError, check

# The last of each triple is a boundary: states of another size than 16, lengths that no chunk divides.
SHAPES = {  # batch, side of the grid, channels, states
    "cuda": [(2, 64, 512, 16), (1, 60, 96, 16), (2, 12, 40, 8), (1, 20, 24, 64), (3, 13, 5, 3)],
    "cpu": [(1, 4, 3, 4), (1, 3, 2, 8)],
}
PATCHES = 4  # along a side, where the side is a multiple of it
TOLERANCE = {"outputs": 1e-5, "gradients": 1e-4}  # of the largest value


def random_scan(batch: int, side: int, channels: int, states: int, recap: bool, initial: bool) -> dict[str, Any]:
    """Inputs of one scan in float64, as the network's have them: time steps of softplus(-2 +- 2), A = -(1..N)."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    length, state = side**2, (batch, 4, channels, states)
    orders = plain_orders(side) if side % PATCHES else patch_orders(side, PATCHES)
    period = side**2 if side % PATCHES else (side // PATCHES) ** 2
    inputs: dict[str, Any] = {
        **{"u": randn(batch, length, channels), "delta": 2 * randn(batch, 4, length, channels)},
        "A": -torch.arange(1, states + 1, dtype=torch.float64).repeat(4, channels, 1)
        * torch.rand(4, channels, 1).add(0.5),
        **{"B": randn(batch, 4, length, states), "C": randn(batch, 4, length, states)},
        **{"skip": randn(4, channels), "delta_bias": randn(4, channels) - 2},
    }
    if recap:
        inputs |= {"decay": torch.rand(state, dtype=torch.float64), "recap_state": randn(*state), "period": period}
    if initial:
        inputs["initial_state"] = randn(*state)
    return {**inputs, "order": orders}


def run_scan(inputs: dict[str, Any], backend: str, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and the gradients of a fixed weighted sum of them, on the CPU in float64."""
    leaves = {k: v.to(device, dtype).requires_grad_() for k, v in inputs.items() if k not in ("order", "period")}
    options: dict[str, Any] = {k: v for k, v in leaves.items() if k not in ("decay", "recap_state")}
    if "decay" in leaves:
        options["recap"] = Recap(leaves["decay"], leaves["recap_state"], inputs["period"])
    order = inputs["order"].to(device)
    outputs = selective_scan(**options, order=order, delta_softplus=True, backend=backend)
    weights = (torch.linspace(-1, 1, x.numel(), device=device, dtype=dtype).view_as(x) for x in outputs)
    weighted = torch.stack([(x * weight).sum() for x, weight in zip(outputs, weights, strict=True)]).sum()
    gradients = torch.autograd.grad(weighted, list(leaves.values()))
    y, state = outputs
    found = {"y": y, "state": state, **{f"d{key}": g for key, g in zip(leaves, gradients, strict=True)}}
    return {key: value.detach().double().cpu() for key, value in found.items()}


def compare_backend(setting: CheckSetting, backend: str) -> dict[str, Any]:
    """One backend over the grid of shapes, orders, recap and initial state; rows of relative errors."""
    if backend == "mamba_ssm":
        from model.scan.mamba_ssm import is_available

        if not is_available():
            raise NothingToCheckError("mamba-ssm is not installed")
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for shape, recap, initial in itertools.product(SHAPES[setting.device.type], (False, True), (False, True)):
        inputs = random_scan(*shape, recap, initial)
        expected = run_scan(inputs, "reference", torch.device("cpu"), torch.float64)
        found, again = (run_scan(inputs, backend, setting.device, torch.float32) for _ in range(2))
        errors = {key: _error(found[key], expected[key]) for key in expected}
        row: dict[str, Any] = {"shape": "x".join(map(str, shape)), "recap": recap, "initial": initial}
        row["outputs"] = max(errors["y"], errors["state"])
        row["gradients"] = max(error for key, error in errors.items() if key.startswith("d"))
        row["same bits twice"] = all(torch.equal(found[key], again[key]) for key in found)
        rows.append(row)
    for kind, limit in TOLERANCE.items():
        worst = max(rows, key=lambda row: row[kind])
        check(worst[kind] < limit, f"{backend}: {kind} are {worst[kind]:.1e} off, at most {limit}: {worst}")
    check(all(row["same bits twice"] for row in rows), f"{backend}: two runs differ")
    return {"errors": rows}


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def check_memory(setting: CheckSetting) -> dict[str, Any]:
    """One small scan, forward and backward, under compute-sanitizer, which finds reads and writes out of bounds."""
    tool = shutil.which("compute-sanitizer")
    if setting.device.type == "cpu" or tool is None:
        raise NothingToCheckError("compute-sanitizer is not installed" if tool is None else "needs a GPU")
    code = "from tools.gpu.scans import run_scan, random_scan as r; import torch; d = torch.device('cuda')\n"
    code += "[run_scan(r(1, s, 5, 3, True, True), 'triton', d, torch.float32) for s in (8, 13)]"
    done = subprocess.run([tool, "--error-exitcode", "9", sys.executable, "-c", code], capture_output=True, text=True)
    check(done.returncode == 0, f"compute-sanitizer: {(done.stdout.strip().splitlines() or [''])[-1]}")
    return {"compute-sanitizer": "no errors"}

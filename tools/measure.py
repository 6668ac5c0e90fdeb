"""Seconds, operations, parameters and memory of functions and modules, and what machine they were measured on."""

import os
import platform
import re
import resource
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import distributions
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from util.errors import UserError

PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024))  # M, K, N; the last is one of HMNet's trunk
SCAN_OPERATIONS = 7  # for one state at one token: delta A, its exp, decay * h, delta u * B, sum, C * h, sum


def timed(function: Callable[[], Any], seconds: float) -> float:
    """Median seconds of calls, at least one and as many as fit into `seconds`, after one that does not count."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median


def product_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """The best GFLOP/s in products (M, K) x (K, N), by matrix products or 1x1 convolutions.

    On a CPU two libraries compute them, MKL and oneDNN, one of them perhaps at half the other's speed.
    """
    best = 0.0
    for m, k, n in PRODUCTS:
        a, b = (torch.randn(rows, k, dtype=dtype, device=device) for rows in (m, n))
        image = a.view(1, m, 1, k).permute(0, 3, 1, 2)  # channels last
        for way in (lambda a=a, b=b: F.linear(a, b), lambda x=image, b=b: F.conv2d(x, b[:, :, None, None])):
            best = max(best, 2 * m * k * n / timed(way, seconds) / 1e9)
    return best


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations that the products, convolutions, attentions and scans of one call of `function` need.

    A multiplication and an addition are two, an exponential in the scan one. Element-wise operations, norms and
    resizes are not counted.
    """
    formulas = {
        torch.ops.selective_scan.forward: scan_flops,
        torch.ops.selective_scan.backward: lambda grad_y, grad_state, saved, *inputs, **_: 2 * scan_flops(*inputs),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        function()
    return counter.get_total_flops()


def scan_flops(*shapes: Any, **_: Any) -> int:
    """Operations of a scan with inputs of these shapes, in the order of `model.scan.inputs.ScanInputs`."""
    u, A, delta_proj = shapes[0], shapes[2], shapes[8]
    return prod(u) * A[0] * (SCAN_OPERATIONS * A[2] + (2 * delta_proj[-1] if delta_proj else 0))


def parameter_count(module: nn.Module, learnable: bool = False) -> int:
    """Numbers in the parameters of a module, of all or only of those that learn."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learnable)


def peak_memory(device: torch.device | None = None) -> int:
    """The most bytes this process has ever had in memory, or its tensors in that of `device`.

    Linux keeps it per program; `ru_maxrss`, taken elsewhere, may also remember what the process was before it was that.
    """
    if device and device.type != "cpu":
        return torch.get_device_module(device).max_memory_allocated()
    if (status := Path("/proc/self/status")).is_file():
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a new process with as many threads, so that its peak memory is its own.

    Raises UserError when the process dies, as it does where memory does not suffice.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"{function.__name__}: its process was killed, perhaps for lack of memory") from None


def machine() -> dict[str, Any]:
    """What ran, on what; None for packages that are not installed."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.*)", information)
    installed = {package.metadata["Name"]: package.version for package in distributions()}
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        **{name: installed.get(name) for name in ("torch", "numpy", "triton", "mamba_ssm", "causal_conv1d")},
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load average": os.getloadavg()[0],  # before it began; above 0 others were at work too
    }

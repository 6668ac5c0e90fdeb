"""Measuring: seconds, floating-point operations, memory, and what the machine could do at best."""

import os
import platform
import resource
import shlex
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from util.errors import UserError

T = TypeVar("T")
Shape = tuple[int, ...]
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024))  # the last is one of the trunk's
SCAN_OPERATIONS = 7  # for one state at one token: delta A, its exp, decay * h, delta u * B, sum, C * h, sum


class Timing(NamedTuple):
    """Seconds of repeated calls."""

    minimum: float
    median: float


def timed(function: Callable[[], Any], repeats: int, warm_ups: int = 1) -> Timing:
    """Time `function` on the CPU, after calls that do not count."""
    for _ in range(warm_ups):
        function()
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return Timing(min(seconds), statistics.median(seconds))


class Peak(NamedTuple):
    """What a machine can do at best."""

    flops: float  # per second
    way: str  # of multiplying, by which it got there


def product_peak(shapes: tuple[Shape, ...] = PRODUCTS, repeats: int = 5, dtype: torch.dtype = torch.float32) -> Peak:
    """The best FLOP/s of this process's threads in products (M, K) x (K, N), by the better of PyTorch's two ways.

    MKL multiplies matrices and oneDNN convolves, one of them perhaps at half the other's speed.
    """
    best = Peak(0.0, "")
    for m, k, n in shapes:
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
        image = a.view(1, m, 1, k).permute(0, 3, 1, 2)  # channels last
        ways: dict[str, Callable[[], Any]] = {
            "matrix products": partial(F.linear, a, b),
            "1x1 convolutions": partial(F.conv2d, image, b[:, :, None, None]),
        }
        peaks = (Peak(2 * m * k * n / timed(run, repeats).minimum, way) for way, run in ways.items())
        best = max(best, *peaks)
    return best


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations that the products, convolutions, attentions and scans of one call of `function` need.

    A multiplication and an addition are two, an exponential in the scan one. Element-wise operations, norms and
    resizes are not counted. Within a FakeTensorMode nothing is computed.
    """
    formulas = {
        torch.ops.selective_scan.forward: _scan_flops,
        torch.ops.selective_scan.backward: lambda grad_y, grad_state, saved, *inputs, **_: 2 * _scan_flops(*inputs),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        function()
    return counter.get_total_flops()


def _scan_flops(
    u: Shape, delta: Shape, A: Shape, B: Shape, C: Shape, order: Shape, skip: Any, delta_bias: Any, delta_proj: Any,
    *_: Any, out_shape: Any = None,
) -> int:  # fmt: skip
    projection = 2 * delta_proj[-1] if delta_proj is not None else 0
    return prod(u) * A[0] * (SCAN_OPERATIONS * A[2] + projection)


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def parameter_count(module: nn.Module | None, learnable: bool = False) -> int:
    """Numbers in the parameters of a module, of all or only of those that learn; 0 for None."""
    parameters = [] if module is None else module.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not learnable)


def peak_memory() -> int:
    """The most bytes this process has ever had in memory.

    Linux keeps it per program; `ru_maxrss`, taken elsewhere, may also remember what the process was before it was that.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a module's function in a new process with as many threads, so that its peak memory is its own.

    Raises UserError when the process dies, as it does where memory does not suffice.
    """
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"{function.__name__}: its process was killed, perhaps for lack of memory") from None


def machine() -> dict[str, Any]:
    """What ran and on what."""
    return {
        "command": shlex.join(["python", "-m", f"tools.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],  # before it began; above 0 others were at work too
    }


def cpu_model() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

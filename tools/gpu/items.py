"""The items by name: what computes each, and its limit of time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tools.gpu import kernels, network, scans, speed
from tools.gpu.setting import CheckSetting


class Item(NamedTuple):
    """A check returns its figures; CheckError says what is wrong, NothingToCheckError that it does not apply."""

    check: Callable[[CheckSetting], dict[str, Any]]
    seconds: float
    interpreted: bool = True  # in a rehearsal, by Triton's interpreter, which does not compile


ITEMS: dict[str, Item] = {
    "scan-triton": Item(partial(scans.compare_backend, backend="triton"), 120),
    "scan-mamba_ssm": Item(partial(scans.compare_backend, backend="mamba_ssm"), 60),
    "scan-reference": Item(partial(scans.compare_backend, backend="reference"), 90),
    "kernels": Item(kernels.check_kernels, 60, interpreted=False),
    "scan-memory": Item(scans.check_memory, 90),
    "scores": Item(network.check_scores, 120),
    "training": Item(network.check_training, 180),
    "peak-memory": Item(network.check_peak_memory, 90),
    "processes": Item(network.check_processes, 90),
    "evaluation": Item(network.check_evaluation, 90),
    "speed": Item(speed.measure_speed, 180),
}

"""The report: what ran on what, and every item's figures, as JSON and Markdown."""

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from tools.paper.table import Table
from util.files import atomic_write

PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "numpy")


class ItemOutcome(NamedTuple):
    """What became of one item."""

    name: str
    state: Literal["passed", "failed", "skipped"]
    seconds: float
    reason: str  # of a failure or of skipping
    figures: dict[str, Any]  # a value, or rows: a list of dictionaries with the same keys


def describe_machine(device: str) -> dict[str, Any]:
    """Devices, driver and versions; None for what is not installed."""
    content: dict[str, Any] = {"device": device, "python": platform.python_version(), "system": platform.platform()}
    content |= {package: _version(package) for package in PACKAGES}
    if torch.cuda.is_available():
        content["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        content["capability"] = [list(torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
        content["cuda"], content["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        content["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
    return content


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_report(folder: Path, machine: Mapping[str, Any], outcomes: Sequence[ItemOutcome]) -> None:
    """Write report.json and report.md of the items so far."""
    content = {"kind": "gpu", "machine": dict(machine), "items": [outcome._asdict() for outcome in outcomes]}
    atomic_write(folder / "report.json", json.dumps(content, indent=1) + "\n")
    atomic_write(folder / "report.md", as_markdown(machine, outcomes))


def as_markdown(machine: Mapping[str, Any], outcomes: Sequence[ItemOutcome]) -> str:
    """The machine, a table of all items, then each item's figures."""
    about = [f"- {key}: {value}" for key, value in machine.items()]
    overview = Table("Items", ("item", "state", "s", "reason"))
    overview.rows = [(o.name, o.state, f"{o.seconds:.1f}", o.reason) for o in outcomes]
    parts = [overview.markdown(), *(text for outcome in outcomes for text in _figures(outcome))]
    return "\n".join(["# GPU report", "", *about, "", *parts])


def _figures(outcome: ItemOutcome) -> list[str]:
    """A table for every list of rows, and a list of the single values."""
    single = [(key, _text(value)) for key, value in outcome.figures.items() if not _is_rows(value)]
    tables = [Table(outcome.name, ("figure", "value"), list(single))] if single else []
    for key, rows in outcome.figures.items():
        if _is_rows(rows):
            columns = list(rows[0])
            tables.append(Table(f"{outcome.name}: {key}", columns, [[_text(row[c]) for c in columns] for row in rows]))
    return [table.markdown() for table in tables]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

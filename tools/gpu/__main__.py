"""Everything that a machine with GPUs must show: `python -m tools.gpu` (or `make gpu`).

Each item runs in a process of its own with a limit of time, so that one that fails or hangs costs nothing but itself;
the rest goes on. Figures and failures go to exp/gpu/report.json and report.md as they come in. `--device cpu` runs the
same items on small shapes, kernels in Triton's interpreter: a rehearsal that needs no GPU.

Exit code 0: all items passed or had nothing to check here; 1: some failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from tools.gpu.items import ITEMS, Item
from tools.gpu.report import ItemOutcome, describe_machine, write_report
from tools.gpu.setting import CheckSetting, NothingToCheckError
from util.errors import UserError, run_main
from util.files import atomic_write

TOTAL = {"cuda": 600, "cpu": 3600}  # seconds for everything


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description="Check a machine with GPUs.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal on small shapes")
    parser.add_argument("--only", nargs="+", default=[], metavar="ITEM", help=f"of {', '.join(ITEMS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("exp/gpu"), help="folder of the report")
    parser.add_argument("--item", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only if name not in ITEMS]:
        raise UserError(f"--only {unknown[0]}: no such item; there are {', '.join(ITEMS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is visible to PyTorch; `--device cpu` rehearses the same items without one")
    return arguments


def limit(item: Item, device: str) -> float:
    """Seconds for an item; a rehearsal may take longer, as interpreted kernels do."""
    return item.seconds * (1 if device == "cuda" else 5)


def run_item(name: str, device: str, seconds: float) -> ItemOutcome:
    """An item in a fresh process; whatever happens to that process is the item's outcome."""
    start = perf_counter()
    interpreted = device == "cpu" and (name not in ITEMS or ITEMS[name].interpreted)
    environment = {**os.environ, "TRITON_INTERPRET": "1"} if interpreted else dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "outcome.json")
        command = [sys.executable, "-m", "tools.gpu", "--device", device, "--item", name, str(file)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return ItemOutcome(name, "failed", perf_counter() - start, f"took more than {seconds:.0f} s", {})
        taken = perf_counter() - start
        if done.returncode == 0 and file.is_file():
            content = json.loads(file.read_text())
            return ItemOutcome(name, content["state"], taken, content["reason"], content["figures"])
    lines = done.stderr.strip().splitlines() or ["no message"]
    return ItemOutcome(name, "failed", taken, f"exit code {done.returncode}: {lines[-1]}", {"stderr": lines[-20:]})


def compute_item(name: str, file: Path, setting: CheckSetting) -> None:
    """The other side of `run_item`: compute the item in this process and leave its outcome in a file."""
    outcome = {"state": "passed", "reason": "", "figures": {}}
    try:
        outcome["figures"] = ITEMS[name].check(setting)
    except NothingToCheckError as error:
        outcome |= {"state": "skipped", "reason": str(error)}
    atomic_write(file, json.dumps(outcome))


def main() -> int:
    """Run the items and write the report after each."""
    arguments = parse_arguments()
    if arguments.item:
        compute_item(arguments.item[0], Path(arguments.item[1]), CheckSetting(torch.device(arguments.device)))
        return 0
    machine, outcomes, end = describe_machine(arguments.device), [], perf_counter() + TOTAL[arguments.device]
    for name in arguments.only or ITEMS:
        print(f"{name:<24}", end="", flush=True)
        left = max(1.0, end - perf_counter())
        outcomes.append(run_item(name, arguments.device, min(limit(ITEMS[name], arguments.device), left)))
        print(f"{outcomes[-1].state:<8}{outcomes[-1].seconds:7.1f} s  {outcomes[-1].reason}", flush=True)
        write_report(arguments.out, machine, outcomes)
    print(f"see {arguments.out / 'report.md'}")
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    run_main(main)

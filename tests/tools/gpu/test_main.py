"""The command: items apart from one another, and a plain PyTorch suffices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toy import ROOT
from tools.gpu import __main__ as command
from tools.gpu.items import ITEMS, Item
from tools.gpu.setting import CheckError, CheckSetting, NothingToCheckError
from util.errors import UserError

# What a PyTorch, NumPy, OpenCV, PyYAML and pydantic bring along.
ALLOWED = (
    "torch numpy cv2 yaml pydantic triton sympy mpmath networkx jinja2 markupsafe fsspec filelock typing_extensions"
)
ALLOWED += " pydantic_core annotated_types typing_inspection torchgen functorch setuptools pkg_resources _yaml"
BLOCKER = f"""
import sys
allowed = {set(ALLOWED.split())!r} | set(sys.stdlib_module_names)
own = {{"util", "model", "dataset", "engine", "prediction", "tools"}}
class Plain:
    finders = list(sys.meta_path)
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed | own or top.startswith(("_", "nvidia")):
            return next(filter(None, (finder.find_spec(name, path, target) for finder in self.finders)), None)
sys.meta_path[:] = [Plain()]
"""


@pytest.mark.parametrize("name", ["scan-reference", "scores"])
def test_plain_pytorch_suffices(tmp_path: Path, name: str) -> None:
    """An item runs where nothing else is installed: neither torchvision nor Pillow, tqdm, SciPy ..."""
    code = f"{BLOCKER}\nfrom tools.gpu import network\nnetwork.MODES = ('float32',)\n"
    code += "import pathlib, torch\nfrom tools.gpu.__main__ import compute_item\n"
    code += "from tools.gpu.setting import CheckSetting\n"
    code += f"compute_item({name!r}, pathlib.Path({str(tmp_path)!r}, 'out.json'), CheckSetting(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["state"] == "passed"


def fails(setting: CheckSetting) -> dict[str, object]:
    raise CheckError("not as it should be")


def skips(setting: CheckSetting) -> dict[str, object]:
    raise NothingToCheckError("nothing here")


def test_item_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = CheckSetting(torch.device("cpu"))
    monkeypatch.setitem(ITEMS, "odd", Item(skips, 1))
    command.compute_item("odd", tmp_path / "a.json", cpu)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "state": "skipped",
        "reason": "nothing here",
        "figures": {},
    }
    monkeypatch.setitem(ITEMS, "odd", Item(fails, 1))
    with pytest.raises(CheckError):
        command.compute_item("odd", tmp_path / "b.json", cpu)
    assert not (tmp_path / "b.json").exists()


def test_a_failing_and_a_hanging_item() -> None:
    outcome = command.run_item("no such item", "cpu", 120)
    assert outcome.state == "failed" and "KeyError" in outcome.reason and outcome.figures["stderr"]
    outcome = command.run_item("scan-reference", "cpu", 0.05)
    assert outcome.state == "failed" and "took more than" in outcome.reason


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--only", "nonsense", "--device", "cpu"])
    with pytest.raises(UserError, match="--only nonsense: no such item"):
        command.parse_arguments()
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU is visible"):
        command.parse_arguments()

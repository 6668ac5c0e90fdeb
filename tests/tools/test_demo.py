"""What the demo prints and how it fails; the demo itself is a command."""

import pytest

from tools import demo
from util.errors import UserError


def test_comparison() -> None:
    figures = {"miou": {"mean": 0.123}, "fb_iou": {"mean": 0.5}}
    better = {"miou": {"mean": 0.4217}, "fb_iou": {"mean": 0.667}}
    lines = demo.comparison({"prototype": figures, "prior": figures, "HMNet": better}).splitlines()
    assert lines[-1].split() == ["HMNet", "42.2", "66.7"]
    assert any(line.split()[-2:] == ["12.3", "50.0"] for line in lines)


def test_a_failing_step_names_its_script() -> None:
    with pytest.raises(UserError, match=r"test\.py stopped with exit code 2"):
        demo.step("Nothing", "test.py", "--method", "nonsense")

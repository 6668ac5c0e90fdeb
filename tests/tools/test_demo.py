"""What the demo prints and how it fails; the demo itself is a command."""

from pathlib import Path

import numpy as np
import pytest

from prediction.support import read_support
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
        demo.step("Nothing", "test.py", "--nonsense")


def test_photographs_and_their_masks(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    assert demo.write_photographs(tmp_path)
    coin, motorcycle = read_support(tmp_path / "support")
    assert (coin.name, motorcycle.name) == ("coin", "motorcycle")
    assert 0.2 < np.mean(coin.masks[0]) < 0.35  # twelve coins of 36 to 56 pixels on 151 x 384
    assert 0.25 < np.mean(motorcycle.masks[0]) < 0.4
    assert len(list((tmp_path / "query").iterdir())) == 4


def test_photographs_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "step", lambda title, *words, config: steps.append(words))
    demo.segment_photographs(tmp_path / "mine", tmp_path / "out")
    (words,) = steps
    assert words[:5] == ("predict.py", "--support", f"{tmp_path}/mine/support", "--query", f"{tmp_path}/mine/query")
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    demo.segment_photographs(None, tmp_path / "out")
    assert len(steps) == 1 and not (tmp_path / "out").exists()

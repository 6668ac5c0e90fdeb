import json
import sys
from pathlib import Path

import pytest

from tests.tools.test_compare import write
from tests.toy import ROOT, toy_config
from tools import search
from util.arguments import experiment_config, training_arguments
from util.config import load_config
from util.errors import UserError


def test_candidates_are_trained_once_and_compared_on_base_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entry points are tested elsewhere; here they leave what they would."""
    config = tmp_path / "toy.yaml"
    config.write_text(toy_config(tmp_path).to_yaml())
    called = []

    def entry_point(title: str, script: str, *arguments: str, config: str) -> None:
        words = list(arguments[arguments.index("--opts") + 1 :])
        cfg = load_config(config, words)
        called.append((script, cfg.blocks, cfg.test_classes, cfg.ensemble))
        if script == "train.py":
            given = training_arguments("", ["--config", config, *arguments])
            assert experiment_config(given).resume == "auto"
        else:
            assert arguments[0] == "--support-check" and cfg.resume is None
            write(cfg.experiment_dir / "result_test_1shot_base.json", [10 * cfg.blocks] * 8, **cfg.model_dump())

    monkeypatch.setattr(search, "step", entry_point)
    monkeypatch.setattr(sys, "argv", ["search", "--config", str(config), "--try", "blocks=4,trunk_lr=1e-3", "blocks=6"])
    search.main()
    sizes = [2, 2, 4, 4, 6, 6]
    assert called == [(s, b, "base", False) for s, b in zip(["train.py", "test.py"] * 3, sizes, strict=True)]
    lines = capsys.readouterr().out.splitlines()
    assert "-20.0 [-20.0, -20.0]" in next(line for line in lines if "blocks=4,trunk_lr=1e-3" in line)
    search.main()
    assert len(called) == 6  # nothing is left to do
    assert (tmp_path / "exp" / "search" / "search.md").read_text() in capsys.readouterr().out
    config.write_text(toy_config(tmp_path, trunk_lr=0.5).to_yaml())
    with pytest.raises(UserError, match=r"_base.json: made with trunk_lr .* instead of 0.5; remove .*as_it_is"):
        search.main()
    config.write_text(toy_config(tmp_path, print_freq=77, base_epochs=7).to_yaml())  # without a base learner
    search.main()
    assert len(called) == 6
    weights = tmp_path / "best.pth"
    weights.write_bytes(b"now")
    (path,) = tmp_path.glob("exp/search/as_it_is/**/result_test_1shot_base.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "weights": str(weights), "weights_digest": "of others"}))
    search.main()
    assert called[6:] == [("train.py", 2, "base", False), ("test.py", 2, "base", False)]  # its weights were made again


@pytest.mark.parametrize("text", ["blocks", "blocks=", "=4", "blocks=4,"])
def test_a_change_that_is_none_is_named(text: str) -> None:
    with pytest.raises(UserError, match=rf"--try {text}: should be key=value"):
        search.changes(text)
    assert search.changes("blocks=4,trunk_lr=1e-3") == ["blocks", "4", "trunk_lr", "1e-3"]


@pytest.mark.parametrize("split", range(4))
def test_the_small_track_is_a_config(split: int) -> None:
    cfg = load_config(ROOT / f"config/small/pascal_split{split}.yaml")
    assert (cfg.split, cfg.data_set, cfg.val_size) == (split, "pascal", 161)
    assert cfg.val_start_epoch == cfg.epochs and not cfg.SubEpoch_val  # no weights are chosen on novel classes

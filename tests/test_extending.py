"""A method and a benchmark put in as docs/extending.md says: one file and one line of a table each, thrown away after.

Nothing else of the tree knows them, and they train, resume, are tested, compared, predict and are shown on the page.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.benchmarks.table import BENCHMARKS
from model.methods import METHODS
from prediction.evidence import gather_evidence
from prediction.predictor import Predictor
from tests.extension.halves import Halves
from tests.extension.knn import NearestNeighbours
from tests.toy import draw_image, entry_point, generator, toy_config, write_toy
from tools import compare
from util.arguments import evaluation_arguments, training_arguments
from util.config import Config

ARCH = "kNN"
SHORT = {"base_lr": 1, "batch_size": 2, "val_start_epoch": 1, "val_episodes": 4, "SubEpoch_val": False}


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The toy experiment with the toy method, which starts from a backbone of random weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(METHODS, ARCH, NearestNeighbours)
    monkeypatch.setitem(BENCHMARKS, "halves", Halves)
    monkeypatch.setattr("model.build.load_pretrained", lambda backbone, cfg: torch.manual_seed(0))
    write_toy(tmp_path / "toy", train=24, val=12)
    cfg = toy_config(tmp_path, arch=ARCH, ensemble=False, epochs=2, **SHORT)
    (tmp_path / "toy.yaml").write_text(cfg.to_yaml())
    return cfg


def run(script: ModuleType, cfg: Config, *opts: str, extra: tuple[str, ...] = ()) -> None:
    config = ["--config", str(Path(cfg.exp).parent / "toy.yaml")]
    parse = evaluation_arguments if hasattr(script, "load_method") else lambda words: training_arguments("", words)
    script.main(parse([*config, *extra, "--opts", *opts]))


def test_a_method_of_ones_own_trains_resumes_is_tested_compared_and_predicts(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = entry_point("train"), entry_point("test")
    run(train, cfg, "epochs", "1")
    run(train, cfg, "resume", "auto")
    weights = cfg.best_weights(1)
    state = torch.load(weights, weights_only=True)["state_dict"]
    assert state["temperature"] != 10
    run(test, cfg)
    run(test, cfg, extra=("--arch", "prototype"))
    result = json.loads((cfg.experiment_dir / f"result_test_1shot_{ARCH}.json").read_text())
    assert result["method"] == ARCH and 0 <= result["results"][0]["miou"] <= 1

    other = cfg.model_copy(update={"arch": "prototype"}).experiment_dir / "result_test_1shot_prototype.json"
    monkeypatch.setattr(
        sys, "argv", ["compare", str(cfg.experiment_dir / f"result_test_1shot_{ARCH}.json"), str(other)]
    )
    compare.main()
    assert "prototype" in capsys.readouterr().out

    predictor = Predictor.from_checkpoint(cfg, weights, device="cpu")
    image, mask = draw_image(generator(), 40, 50, [1])
    predictor.set_support([image], [np.where(mask == 255, 0, mask)])
    assert predictor.predict(image).mask.shape == (40, 50)
    assert gather_evidence(predictor, image).maps["probability"].shape[0] == 1


def test_a_benchmark_of_ones_own(cfg: Config, tmp_path: Path) -> None:
    for side in ("left", "right"):
        for folder in (tmp_path / "halves" / side, tmp_path / "halves" / "masks" / side):
            folder.mkdir(parents=True)
        for number in range(3):
            rows = np.full((40, 40), 1 if side == "left" else 2, np.uint8)
            rows[:, 20:] = 0
            image, _ = draw_image(generator(), 40, 40, [1])
            flip = slice(None, None, 1 if side == "left" else -1)
            Image.fromarray(image).save(tmp_path / "halves" / side / f"{number}.png")
            Image.fromarray(rows[:, flip]).save(tmp_path / "halves" / "masks" / side / f"{number}.png")
    place = ("test_set", "halves", "test_root", str(tmp_path / "halves"), "protocol", "seeded", "test_episodes", "6")
    run(entry_point("test"), cfg, *place, extra=("--arch", "prototype", "--result", str(tmp_path / "out.json")))
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["classes"] == {"1": "left", "2": "right"} and len(content["results"][0]["episode_iou"]) == 6

"""Every method with random weights through test.py, predict.py, `Predictor` and the page, which agree."""

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import predict
from dataset.demo import write_demo
from engine.results import OneClassResult, read_result
from model.build import build_model
from model.methods import METHODS
from model.released import checkpoint_state
from prediction.predictor import Predictor
from tests.toy import ROOT, entry_point
from tools.browser.session import Session
from util.arguments import evaluation_arguments
from util.checkpoint import save_checkpoint
from util.config import Config, load_config
from util.pixels import IGNORE

TINY = {"width": 16, "blocks": 2, "feature_size": 8, "scan": "reference", "device": "cpu", "loader_workers": 0}
ENCODER = "test_efficientnet"  # of timm, for training-free methods


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images, their scan, and random weights of the encoder."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder / "data", images_per_class=7, size=56)  # below twice the network's, or predict.py reduces them
    (folder / "timm").mkdir()
    torch.save(timm.create_model(ENCODER).state_dict(), folder / "timm" / f"{ENCODER}.pth")
    return folder


def experiment(name: str, folder: Path, exp: Path) -> tuple[Config, Path, Path | None]:
    """A config, its file, and random weights if there is anything to learn."""
    plain = name in ("HSNet", "DCAMA")  # whose images have multiples of 32 pixels
    size = 64 if plain else 33
    places = {"data_root": folder / "data", "initmodel": folder, "exp": exp}
    keys = {**TINY, **places, "arch": name, "train_h": size, "train_w": size, "val_size": size, "test_episodes": 2}
    keys |= {"area_threshold": 30, "ppm_scales": "[1, 0.5]", "backbone": "tiny", "output_stride": 32 if plain else 8}
    words = [str(word) for pair in keys.items() for word in pair]
    cfg = load_config(ROOT / "config" / "demo.yaml", words)
    model = build_model(cfg, pretrained=False)
    weights = None
    if model.is_trained:
        weights = cfg.best_weights(1)
        save_checkpoint(weights, {"state_dict": checkpoint_state(model)})
    else:
        cfg = cfg.model_copy(update={"backbone": f"timm/{ENCODER}", "ensemble": False})
    file = exp / "config.yaml"
    file.write_text(cfg.to_yaml())
    return cfg, file, weights


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_tested_and_predicts(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    cfg, file, weights = experiment(name, folder, tmp_path)
    entry_point("test").main(evaluation_arguments(["--config", str(file)]))
    (result,) = (read_result(path, OneClassResult) for path in tmp_path.rglob("result_test_*.json"))
    assert result.method == name.removesuffix("AMP") and 0 <= result.results[0].miou <= 1
    assert len(next(tmp_path.rglob("*.episodes.jsonl")).read_text().splitlines()) == 2

    image, query = (folder / "data" / "JPEGImages" / f"{number:04d}.jpg" for number in (0, 20))  # of one class
    with Image.open(folder / "data" / "SegmentationClassAug" / "0000.png") as labels:
        mask = (np.asarray(labels) == 1).astype(np.uint8)
    support = tmp_path / "support"
    support.mkdir()
    (support / "one.jpg").write_bytes(image.read_bytes())
    Image.fromarray(255 * mask).save(support / "one.png")
    source = ("--weights", weights) if weights else ("--arch", name)
    words = (*source, "--config", file, "--support", support, "--query", query, "--out", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
    assert predict.main() == 0
    with Image.open(tmp_path / "out" / "masks" / "0020.png") as written:
        found = np.asarray(written)

    predictor = Predictor.from_checkpoint(cfg, weights) if weights else Predictor.from_method(name, cfg)
    predictor.set_support([image], [mask])
    prediction = predictor.predict(query)
    assert np.array_equal(prediction.mask, found) and prediction.probability.shape == found.shape

    session = Session()
    session.add_shot(image, np.asarray(Image.open(image)), mask)
    assert [*session.search(predictor, [str(query)], lambda image: "")] == [None]
    (answer,) = session.answers
    assert np.array_equal(answer.evidence.prediction(0.5, np.asarray(Image.open(query))).mask, found)


@pytest.mark.parametrize(
    ("name", "corrections"),
    [
        *((name, []) for name in ("HMNet", "HMNetLite", "BAM", "PFENet", "HDMNet", "SCCAN", "HSNet", "DCAMA")),
        *((name, ["ignored_pixels"]) for name in ("HSNet", "DCAMA")),
    ],
)
def test_losses_of_a_batch_are_those_of_its_parts(
    name: str, corrections: list[str], folder: Path, tmp_path: Path
) -> None:
    """By the shares that a step of several batches gives them, however many pixels each has to judge."""
    cfg, *_ = experiment(name, folder, tmp_path)
    model = build_model(cfg, pretrained=False)
    model.correct(corrections)
    query, *support = torch.randn(3, 2, 3, cfg.val_size, cfg.val_size).unbind()
    truth = torch.randint(0, 2, (3, 2, cfg.val_size, cfg.val_size))[0]
    truth[0, 5:] = IGNORE
    with torch.no_grad():
        scores = model.eval()(query, support[0].unsqueeze(1), truth.roll(1, 0).unsqueeze(1))
    whole = model.losses(scores, truth)
    shares = (truth != IGNORE).flatten(1).double().mean(1)
    for key, loss in whole.items():
        parts = torch.stack([model.losses(scores.item(i), truth[i : i + 1])[key] for i in range(2)])
        weights = torch.full((2,), 0.5) if key in model.item_means else shares / shares.sum()
        torch.testing.assert_close((parts * weights).sum().float(), loss, rtol=1e-4, atol=1e-5)

"""Fitted states in a file: found again by the same supports, and by nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prediction.fitted import load_fitted, save_fitted
from prediction.predictor import Predictor
from tests.prediction.test_predictor import shapes
from util.config import Config, load_config


def fresh(model_seed: int = 0) -> Predictor:
    """`adapt` on a backbone of random weights."""
    from model.build import build_model

    torch.manual_seed(model_seed)
    cfg = load_config("config/base/pascal.yaml", ["backbone", "tiny", "arch", "adapt", "ensemble", "False"])
    return Predictor(build_model(cfg, pretrained=False), 65, 1, torch.device("cpu"))


def test_the_same_supports_need_no_second_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support, query = {"a": shapes(50, 60), "b": shapes(45, 70)}, shapes(48, 48)[0]
    first, file = fresh(), tmp_path / "fitted.safetensors"
    assert not load_fitted(file, first)
    first.set_support(support)
    expected = first.predict(query)
    assert save_fitted(file, first)
    second = fresh()
    assert load_fitted(file, second)
    monkeypatch.setattr(second.model, "support_state", lambda *_: pytest.fail("fitted again"))
    second.set_support(support)
    found = second.predict(query).class_probabilities
    np.testing.assert_allclose(found, expected.class_probabilities, atol=1e-6)


def test_a_file_of_another_backbone_or_a_damaged_one_is_not_taken(tmp_path: Path) -> None:
    predictor, file = fresh(), tmp_path / "fitted.safetensors"
    predictor.set_support(*shapes(50, 60))
    assert save_fitted(file, predictor) and not load_fitted(file, fresh(1))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"fitted\.safetensors: is damaged; what it held is fitted anew"):
        assert not load_fitted(file, predictor)
    assert save_fitted(file, predictor) and load_fitted(file, predictor)


def test_states_of_other_kinds_are_left(tmp_path: Path, experiment: tuple[Config, Path]) -> None:
    predictor = Predictor.from_checkpoint(*experiment, device="cpu")
    predictor.set_support(*shapes(50, 60))
    assert not save_fitted(tmp_path / "fitted.safetensors", predictor) and not list(tmp_path.iterdir())

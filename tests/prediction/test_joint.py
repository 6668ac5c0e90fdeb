"""Two predictors together: the mean of what both say, and where the command takes them."""

import argparse
from pathlib import Path

import pytest
import torch

from prediction.choice import NETWORK, choose, with_network
from prediction.joint import SURE, JointPredictor
from prediction.support import SupportClass
from tests.prediction.test_fitted import fresh
from tests.prediction.test_predictor import shapes
from util.config import load_config


def test_the_margin_is_the_mean_of_both() -> None:
    first, second, joint = fresh(0), fresh(1), JointPredictor(fresh(0), fresh(1))
    support, query = shapes(50, 60), shapes(65, 65)[0]  # at the network's size, so that nothing is resized
    margins = []
    for predictor in (first, second, joint):
        predictor.set_support(*support)
        scores = predictor.scores([predictor.network_input(query)])[0]
        margins.append(scores[0].margin_at(65))
    expected = (margins[0].clamp(-SURE, SURE) + margins[1].clamp(-SURE, SURE)) / 2
    torch.testing.assert_close(margins[2], expected, atol=1e-5, rtol=1e-5)
    assert joint.predict(query).mask.shape == (65, 65)
    joint.states["object"] = {**joint.states["object"], "object": -joint.states["object"]["object"]}
    assert not joint.predict(query).is_found  # as nothing is like the object


def test_a_network_joins_its_own_backbone_alone() -> None:
    cfg = load_config("config/base/pascal.yaml", ["backbone", "tiny", "arch", "adapt", "ensemble", "False"])
    predictor = fresh()
    assert with_network(predictor, cfg, "cpu") is predictor


@pytest.mark.parametrize(
    ("masks", "arch", "joined"), [(1, None, True), (2, None, True), (3, None, False), (1, "adapt", False)]
)
def test_few_masks_are_left_to_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: int, arch: str | None, joined: bool
) -> None:
    monkeypatch.setattr("prediction.choice.open_predictor", lambda *_: fresh())
    monkeypatch.setattr("prediction.choice.with_network", lambda first, *_: JointPredictor(first, fresh(1)))
    cfg = load_config("config/base/pascal.yaml", ["backbone", "tiny", "arch", "adapt", "ensemble", "False"])
    arguments = argparse.Namespace(
        weights=None, arch=arch, device="cpu", out=tmp_path, tile=None, threshold=None,
        no_expectation=True, curve=False, scale="as is",
    )  # fmt: skip
    support = [SupportClass("object", 1, *map(list, zip(*[shapes(50, 60)] * masks, strict=True)))]
    choice = choose(arguments, cfg, support, {})
    assert isinstance(choice.predictor, JointPredictor) == joined
    assert choice.notes["method"] == ("adapt and " + NETWORK if joined else "adapt")

"""Two methods together: the mean of what both say, and where commands take them."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from prediction.choice import USUAL, Source, choose, open_predictor
from prediction.evidence import gather_evidence
from prediction.fitted import load_fitted, save_fitted
from prediction.joint import SURE, Joint, needed, together
from prediction.predictor import Predictor
from prediction.settings import fingerprint
from prediction.support import SupportClass
from tests.prediction.test_fitted import fresh
from tests.prediction.test_predictor import shapes
from util.config import Config, load_config


def pair() -> Predictor:
    return together(fresh(0), fresh(1))


def tiny_config() -> Config:
    return load_config("config/base/pascal.yaml", ["backbone", "tiny", "arch", "adapt", "ensemble", "False"])


def several(masks: int) -> tuple[list[Any], list[Any]]:
    pairs = [shapes(50, 60) for _ in range(masks)]
    return [image for image, _ in pairs], [mask for _, mask in pairs]


@pytest.mark.parametrize("masks", [1, 2, 3])
def test_with_few_masks_the_margin_is_the_mean_of_both_with_the_detail_of_the_first(masks: int) -> None:
    first, second, joint = fresh(0), fresh(1), pair()
    support, query, margins = several(masks), shapes(65, 65)[0], []  # at the network's size, so that nothing is resized
    for predictor in (first, second, joint):
        predictor.set_support(*support)
        scores = predictor.scores([predictor.network_input(query)])[0]
        margins.append(scores[0].margin_at(65).clamp(-SURE, SURE))
    coarse = F.interpolate(F.adaptive_avg_pool2d(margins[0], 20)[None], 65, mode="bilinear")[0]
    expected = margins[0] + (margins[1] - coarse) / 2 if masks < 3 else margins[0]
    torch.testing.assert_close(margins[2], expected, atol=1e-4, rtol=1e-4)
    assert joint.predict(query).mask.shape == (65, 65)
    evidence = gather_evidence(joint, query)
    torch.testing.assert_close(evidence.scores[0].margin_at(65).clamp(-SURE, SURE), expected, atol=1e-4, rtol=1e-4)
    state = joint.states["object"]["first"]
    joint.states["object"] = joint.states["object"] | {"first": state | {"object": -state["object"]}}
    assert not joint.predict(query).is_found  # as nothing is like the object


def test_with_many_masks_it_is_the_first_to_the_bit() -> None:
    first, joint, support, query = fresh(0), pair(), several(3), shapes(70, 90)[0]
    for predictor in (first, joint):
        predictor.set_support(*support)
    np.testing.assert_array_equal(joint.predict(query).probability, first.predict(query).probability)


@pytest.mark.parametrize("order", [(1, 3), (3, 1)])
def test_classes_of_few_and_of_many_masks_are_explained_together(order: tuple[int, int]) -> None:
    joint = pair()
    joint.set_support({str(masks): several(masks) for masks in order})
    first = fresh(0)
    first.set_support(*several(3))
    evidence, alone = (gather_evidence(predictor, shapes(50, 60)[0]) for predictor in (joint, first))
    assert evidence.maps.keys() == alone.maps.keys() and all(len(maps) == 2 for maps in evidence.maps.values())


@pytest.mark.parametrize(("masks", "joined"), [((2,), True), ((3,), False), ((3, 1), True)])
def test_a_network_is_needed_for_few_masks(masks: tuple[int, ...], joined: bool) -> None:
    joint = pair()
    support = [SupportClass(str(number), number, *several(count)) for number, count in enumerate(masks, 1)]
    alone = needed(joint, support)
    assert (alone is joint) == joined and (joined or alone.model is joint.model.first)


def test_each_class_counts_its_own_masks() -> None:
    joint = pair()
    joint.set_support({"few": several(2), "many": several(3)})
    assert [*joint.states["few"]] == ["first", "second"] and [*joint.states["many"]] == ["first"]


def test_what_was_fitted_to_many_masks_is_kept(tmp_path: Path) -> None:
    joint, again, file = pair(), pair(), tmp_path / "fitted.safetensors"
    joint.set_support(*several(3))
    assert save_fitted(file, joint) and load_fitted(file, again)
    (key,) = joint.known
    torch.testing.assert_close(again.known[key], joint.known[key], rtol=0, atol=0)


def test_a_network_joins_its_own_backbone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prediction.choice.Predictor.from_method", lambda *_: fresh())
    assert not isinstance(open_predictor(Source(tiny_config(), None, is_usual=True), "cpu").model, Joint)


@pytest.mark.parametrize(
    ("masks", "arch", "joined"), [(1, None, True), (2, None, True), (3, None, False), (1, "adapt", False)]
)
def test_few_masks_are_left_to_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: int, arch: str | None, joined: bool
) -> None:
    monkeypatch.setattr("prediction.choice.open_predictor", lambda source, _: pair() if source.is_usual else fresh())
    arguments = argparse.Namespace(
        device="cpu", out=tmp_path, tile=None, threshold=None,
        no_expectation=True, curve=False, scale="as is",
    )  # fmt: skip
    source = Source(tiny_config(), None, is_usual=arch is None)
    choice = choose(arguments, source, [SupportClass("object", 1, *several(masks))], {})
    assert isinstance(choice.predictor.model, Joint) == joined
    assert choice.notes["method"] == (USUAL if joined else "adapt")


def test_results_of_both_are_not_those_of_the_first_alone() -> None:
    cfg = load_config("config/predict.yaml")
    alone, both = (fingerprint(Source(cfg, None, is_usual), [], Path()) for is_usual in (False, True))
    assert alone != both

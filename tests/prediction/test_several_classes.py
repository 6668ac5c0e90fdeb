"""Several classes at once: the objects of the others are background for a method that learns from them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.methods.method import Features, State
from tests.prediction.test_fitted import fresh
from tests.prediction.test_predictor import shapes


@pytest.mark.parametrize("learns", [False, True])
def test_objects_of_other_classes_are_background(monkeypatch: pytest.MonkeyPatch, learns: bool) -> None:
    predictor, seen = fresh(), list[Tensor]()
    monkeypatch.setattr(type(predictor.model), "learns_from_others", learns)
    fit = predictor.model.support_state

    def noting(features: Features, masks: Tensor) -> State:
        seen.append(masks)
        return fit(features, masks)

    monkeypatch.setattr(predictor.model, "support_state", noting)
    predictor.set_support({"a": shapes(65, 65), "b": shapes(65, 65)})
    for own, other in (seen, seen[::-1]):
        assert own.shape[1] == 1 + learns
        if learns:
            assert torch.equal(own[0, 1] == 0, other[0, 0] == 1) and (own[0, 1] != 1).all()
    found = predictor.predict(shapes(40, 50)[0])
    assert found.class_probabilities.shape == (2, 40, 50) and np.isfinite(found.class_probabilities).all()

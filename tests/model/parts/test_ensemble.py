"""Ensemble parts against the original network's arrays and against loops over the formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.parts.ensemble import Ensemble, ShotWeights, base_map, gram, scene_difference

FIXTURE = np.load(Path(__file__).parents[2] / "data" / "blocks.npz")


def test_gram_reproduces_the_original() -> None:
    x = torch.from_numpy(FIXTURE["gram/x"])
    torch.testing.assert_close(gram(x), torch.from_numpy(FIXTURE["gram/gram"]), atol=1e-6, rtol=1e-5)


def test_scene_difference_is_a_norm_relative_to_all_ones() -> None:
    query, support = torch.randn(2, 5, 5), torch.randn(2, 3, 5, 5)
    actual = scene_difference(query, support)
    for b in range(2):
        for k in range(3):
            expected = torch.linalg.norm(query[b] - support[b, k]) / torch.linalg.norm(torch.ones(5, 5))
            torch.testing.assert_close(actual[b, k], expected)


def test_base_map_leaves_out_the_class_of_the_episode() -> None:
    logits = torch.randn(2, 4, 3, 3)
    probability = logits.softmax(1)
    torch.testing.assert_close(base_map(logits), 1 - probability[:, :1])
    without = base_map(logits, torch.tensor([2, 0]))
    torch.testing.assert_close(without[0, 0], probability[0, 1] + probability[0, 2])
    torch.testing.assert_close(without[1, 0], probability[1, 2] + probability[1, 3])


@pytest.mark.parametrize("hidden", [0, 2])
def test_shot_weights_are_sorted_or_returned_to_their_shots(hidden: int) -> None:
    values = torch.tensor([[0.7, 0.1, 0.4]])
    by_rank, by_shot = ShotWeights(3, hidden), ShotWeights(3, hidden, unsort=True)
    torch.nn.init.normal_(next(by_rank.parameters()))
    by_shot.load_state_dict(by_rank.state_dict())
    torch.testing.assert_close(by_shot(values)[0], by_rank(values)[0][[2, 0, 1]])
    torch.testing.assert_close(by_rank(values).sum(), torch.tensor(1.0))


def test_an_untrained_ensemble_returns_the_meta_probabilities() -> None:
    logits, base, difference = torch.randn(2, 2, 4, 4), torch.rand(2, 1, 4, 4), torch.rand(2, 1)
    torch.testing.assert_close(Ensemble(1)(logits, base, difference), logits.softmax(1))


def test_shots_that_the_weights_were_not_made_for_are_refused() -> None:
    with pytest.raises(ValueError, match="5 shots"):
        Ensemble(5)(torch.randn(1, 2, 4, 4), torch.rand(1, 1, 4, 4), torch.rand(1, 3))


def test_ensemble_shows_its_weights_over_the_shots() -> None:
    difference = torch.rand(2, 3)
    torch.testing.assert_close(Ensemble(1).weights(difference), torch.full((2, 3), 1 / 3))
    ensemble, meta, base = Ensemble(3, unsort=True), torch.randn(2, 2, 4, 4), torch.rand(2, 1, 4, 4)
    one = Ensemble(1)
    one.load_state_dict(ensemble.state_dict(), strict=False)
    weighted = (ensemble.weights(difference) * difference).sum(1, keepdim=True)
    torch.testing.assert_close(ensemble(meta, base, difference), one(meta, base, weighted))

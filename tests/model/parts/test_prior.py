"""Prior masks and prototypes against the original network's arrays and against the plain formula."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.parts.prior import LevelPrior, level_prior, masked_average, max_cosine_prior, prototypes, select_prior
from model.resize import resize

FIXTURE = np.load(Path(__file__).parents[2] / "data" / "blocks.npz")


def test_level_prior_reproduces_the_original() -> None:
    query, support, mask = (torch.from_numpy(FIXTURE[f"prior/{name}"]) for name in ("query", "support", "mask"))
    prior = level_prior(query, prototypes(support, mask), mask.shape[-1])
    names = ("fg", "bg", "discriminative", "fg_max", "discriminative_max")
    for actual, name in zip(prior, names, strict=True):
        torch.testing.assert_close(actual, torch.from_numpy(FIXTURE[f"prior/{name}"]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(5, 5), (12, 7), (1, 1)])
def test_prototypes_equal_averages_over_resized_features(size: tuple[int, int]) -> None:
    features = torch.randn(2, 3, 6, *size, dtype=torch.float64)
    mask = torch.rand(2, 3, 1, 8, 8, dtype=torch.float64)
    large = resize(features.flatten(0, 1), 8).unflatten(0, (2, 3))
    expected = torch.stack([masked_average(large, mask), masked_average(large, 1 - mask)], dim=2)
    torch.testing.assert_close(prototypes(features, mask), expected)


def test_a_mask_without_background_has_no_prototype_of_it() -> None:
    features = torch.randn(1, 1, 6, 5, 7)
    assert (prototypes(features, torch.ones(1, 1, 1, 8, 8))[:, :, 1] == 0).all()
    assert (prototypes(features, torch.zeros(1, 1, 1, 8, 8))[:, :, 0] == 0).all()


def test_half_precision_holds_sums_over_large_maps() -> None:
    support, query = 30 * torch.rand(1, 1, 8, 60, 60) + 10, torch.rand(1, 8, 60, 60)
    mask = torch.zeros(1, 1, 1, 80, 80)
    mask[..., :70, :] = 1
    assert (resize(support[0], 80) * mask[0]).sum((-2, -1)).min() > torch.finfo(torch.half).max
    average = masked_average(resize(support[0], 80).half(), mask[0].half())
    torch.testing.assert_close(average.float(), masked_average(resize(support[0], 80), mask[0]), rtol=1e-2, atol=0)
    expected = level_prior(query, prototypes(support, mask), 80)
    found = level_prior(query.half(), prototypes(support.half(), mask.half()), 80)
    torch.testing.assert_close(found.foreground.float(), expected.foreground, rtol=0, atol=0.05)


def test_each_map_is_chosen_per_sample_and_shot_by_its_own_maximum() -> None:
    fourth = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    fifth = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    numbers = torch.rand(4, 2, 3)
    numbers[2, 0, 0] = numbers[0, 0, 0]  # a tie goes to the fourth stage
    chosen = select_prior([LevelPrior(*fourth, numbers[0], numbers[1]), LevelPrior(*fifth, numbers[2], numbers[3])])
    for b in range(2):
        foreground = [(fifth if numbers[0, b, k] < numbers[2, b, k] else fourth)[0][b, k] for k in range(3)]
        discriminative = [(fifth if numbers[1, b, k] < numbers[3, b, k] else fourth)[2][b, k] for k in range(3)]
        torch.testing.assert_close(chosen[b, 0], sum(foreground) / 3)
        torch.testing.assert_close(chosen[b, 1], sum(discriminative) / 3)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_largest_cosine_counts_positions_without_mask_as_zero(normalise: bool) -> None:
    query, support = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, 4, 2, dtype=torch.float64)
    mask = (0.5 + torch.rand(2, 3, 1, 4, 2, dtype=torch.float64)) * (torch.rand(2, 3, 1, 4, 2) < 0.4)
    mask[1, 2], mask[0, 0] = 0, 1
    masked = (support * mask).flatten(3)
    q = query.flatten(2)
    lengths = q.norm(dim=1)[:, None, :, None] * masked.norm(dim=2)[:, :, None]
    expected = (torch.einsum("bcq,bkcs->bkqs", q, masked) / (lengths + 1e-7)).amax(-1)
    if normalise:
        low, high = expected.amin(-1, keepdim=True), expected.amax(-1, keepdim=True)
        expected = (expected - low) / (high - low + 1e-7)
    prior = max_cosine_prior(query, support, mask, normalise)
    torch.testing.assert_close(prior, expected.unflatten(-1, (3, 4)), atol=1e-5, rtol=1e-5)
    assert not prior[1, 2].any()

"""Seeding every generator."""

import itertools
import random

import numpy as np
import torch

from util.rng import make_deterministic, mixed_seed, seed_all


def draws() -> tuple[float, float, float, float]:
    """One number of each generator; `gauss` and `standard_normal` keep a second one for the next call."""
    return random.gauss(), random.random(), float(np.random.standard_normal()), float(torch.rand(()))


def test_a_seed_decides_all_draws() -> None:
    seed_all(2**35 + 11)  # NumPy takes 32 bits only
    first = draws()
    seed_all(2**35 + 11)
    assert draws() == first
    seed_all(2**35 + 12)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_mixed_seeds_of_neighbours_differ() -> None:
    seeds = {mixed_seed(*numbers) for numbers in itertools.product(range(3), range(10), range(20))}
    assert len(seeds) == 600 and mixed_seed(1, 2) != mixed_seed(2, 1)
    seed_all(mixed_seed(2**35 + 1, 0))


def test_deterministic_algorithms_can_be_left_again() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        make_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        make_deterministic(False)
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]

"""Seeding, keeping and restoring every generator, through a checkpoint file."""

import random
from pathlib import Path

import numpy as np
import torch

from util.checkpoint import read_checkpoint, save_checkpoint
from util.rng import make_deterministic, restore_rng, rng_state, seed_all, undisturbed_rng


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


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    draws()
    save_checkpoint(tmp_path / "state.pth", {"rng": rng_state()})
    expected = [draws() for _ in range(3)]
    restore_rng(read_checkpoint(tmp_path / "state.pth")["rng"])
    assert [draws() for _ in range(3)] == expected


def test_undisturbed() -> None:
    state = rng_state()
    expected = draws()
    restore_rng(state)
    with undisturbed_rng():
        seed_all(1)
    assert draws() == expected


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

"""Random numbers: one place that seeds every generator that training draws from."""

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch, GPUs included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def mixed_seed(*numbers: int) -> int:
    """A seed of 32 bits from several numbers, none negative; neighbours give independent ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def make_deterministic(wanted: bool) -> None:
    """Choose algorithms that give the same bits every time, where PyTorch has them; it warns where it has not."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.benchmark = not wanted

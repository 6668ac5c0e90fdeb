"""Nearest neighbours against a plain search, and which positions are examples."""

import numpy as np
import torch
from scipy.spatial.distance import cdist

from model.parts.neighbours import EXAMPLES, NEIGHBOURS, draw_examples, neighbour_margins


def test_the_margins_are_those_of_a_plain_search() -> None:
    rows, examples = torch.randn(30, 7), torch.zeros(2, EXAMPLES, 7)
    known = torch.randn(40, 7), torch.randn(9, 7)
    examples[0, :40], examples[1, :9] = known
    for margin, first in zip(neighbour_margins(rows, examples, 3), (0, 4), strict=True):
        means = []
        for each in known:
            cosines = 1 - cdist(rows[:, first:].numpy(), each[:, first:].numpy(), "cosine")
            means.append(np.sort(cosines, axis=1)[:, -NEIGHBOURS:].mean(1))
        np.testing.assert_allclose(margin, means[1] - means[0], rtol=1e-4, atol=1e-5)
    few = examples.clone()
    few[1, 2:] = 0  # fewer than are looked for
    assert (neighbour_margins(few[1, :2], few, 3)[0] > neighbour_margins(-few[1, :2], few, 3)[0]).all()


def test_examples_are_clear_positions_and_the_same_always() -> None:
    shares = torch.zeros(2, 2 * EXAMPLES)
    shares[0, :1500], shares[1, 1500:1600], shares[:, 1600:1700] = 1, 0.2, 0.09
    rows = torch.cat([torch.ones(2 * EXAMPLES, 1), torch.arange(2.0 * EXAMPLES)[:, None]], dim=1)
    examples = draw_examples(rows, shares)
    assert torch.equal(examples, draw_examples(rows, shares))
    numbers = examples[..., 1]
    assert len(numbers[0].unique()) == EXAMPLES and numbers[0].max() < 1500
    torch.testing.assert_close(numbers[1, :100].sort().values, torch.arange(1500.0, 1600))
    assert not examples[1, 100:].any()
    assert not draw_examples(rows, torch.zeros_like(shares)).any()

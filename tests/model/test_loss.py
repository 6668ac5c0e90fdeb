"""Dice loss against the original network's array and a loop over the formula."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from model.loss import cross_entropy, dice_loss, episode_loss
from model.methods.hmnet import Scores

FIXTURE = np.load(Path(__file__).parents[1] / "data" / "blocks.npz")


def test_dice_reproduces_the_original() -> None:
    loss = dice_loss(torch.from_numpy(FIXTURE["dice/logits"]), torch.from_numpy(FIXTURE["dice/target"]))
    torch.testing.assert_close(loss, torch.from_numpy(FIXTURE["dice/loss"]))


def test_dice_equals_its_formula_and_counts_ignored_pixels_only_as_predictions() -> None:
    logits = torch.randn(3, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (3, 5, 7))
    target[target == 2] = 255
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(3):
        for channel in range(2):
            p, t = logits[b, channel].sigmoid(), (target[b] == channel).double()
            expected = expected + 1 - 2 * (p * t).sum() / (p.square().sum() + t.sum())
    torch.testing.assert_close(dice_loss(logits, target), expected / 3)
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, target), logits)


def test_an_episode_has_two_losses_on_the_scores_that_they_are_for() -> None:
    meta, final = torch.randn(2, 2, 2, 5, 7, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 5, 7))
    target[target == 2] = 255
    losses = episode_loss(Scores(meta, final), target)
    valid = target != 255
    right = final.softmax(1).gather(1, (target * valid)[:, None])[:, 0][valid]
    assert losses.keys() == {"cross_entropy", "dice"}
    torch.testing.assert_close(losses["cross_entropy"], -right.log().mean())
    torch.testing.assert_close(losses["dice"], dice_loss(meta, target))


def test_a_batch_of_ignored_pixels_costs_nothing() -> None:
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 5, 7), 255))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    target = torch.randint(0, 3, (2, 5, 7))
    target[0, 2:] = 255
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target, ignore_index=255))

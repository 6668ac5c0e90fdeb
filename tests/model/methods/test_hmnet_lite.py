"""HMNetLite's training-free margins against plain formulas."""

import numpy as np
import torch

from model.methods.hmnet_lite import RIDGE, examples, nearest_margin

SHAPE = (2, 3, 6, 8, 8)  # B, K, C, f, f


def episode() -> tuple[torch.Tensor, torch.Tensor]:
    """Features and masks whose 2 x 2 positions are of one value each."""
    values = torch.from_numpy(np.random.default_rng(3).choice([0, 1, 255], (2, 3, 4, 4), p=[0.5, 0.3, 0.2]))
    masks = values.to(torch.uint8).repeat_interleave(8, 2).repeat_interleave(8, 3)  # (B, K, 32, 32)
    return torch.randn(SHAPE, dtype=torch.float64), masks


def test_the_discriminant_is_of_all_shots_without_ignored_pixels() -> None:
    x, masks = episode()
    found = examples(x.flatten(0, 1), masks)
    for sample in range(2):
        labels = masks[sample, :, ::4, ::4].flatten().numpy()  # a position's
        rows = x[sample].movedim(1, -1).reshape(-1, 6).numpy()
        classes = [rows[labels == value] for value in (0, 1)]
        covariance = sum(np.cov(each.T, bias=True) for each in classes) / 2
        difference = classes[1].mean(0) - classes[0].mean(0)
        direction = np.linalg.solve(covariance + RIDGE * np.eye(6) * np.trace(covariance) / 6, difference)
        direction *= 2 / (direction @ difference)
        np.testing.assert_allclose(found["direction"][sample], direction, rtol=1e-6)
        margins = [each.mean(0) @ direction - float(found["offset"][sample]) for each in classes]
        np.testing.assert_allclose(margins, [-1, 1], rtol=1e-6)


def test_the_nearest_examples_are_those_that_are_clear() -> None:
    x, masks = episode()
    found = examples(x.flatten(0, 1), masks)
    query = torch.nn.functional.normalize(torch.randn(2, 6, 8, 8, dtype=torch.float64), dim=1)
    margin = nearest_margin(query, found["bank"], found["shares"])
    for sample in range(2):
        labels = masks[sample, :, ::8, ::8].flatten()  # of 2 x 2 positions
        means = x[sample].unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3)).movedim(1, -1).reshape(-1, 6)
        cosine = torch.nn.functional.normalize(means, dim=1) @ query[sample].flatten(1)
        expected = cosine[labels == 1].amax(0) - cosine[labels == 0].amax(0)
        torch.testing.assert_close(margin[sample].flatten(), expected)

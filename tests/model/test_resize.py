"""The network's resize against the formula of bilinear interpolation with aligned corners."""

import torch

from model.resize import resize, resize_last
from tests.toy import generator


def interpolated(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Every output pixel from its four neighbours; the corners of input and output lie on one another."""
    h, w = x.shape[-2:]
    out = x.new_empty(*x.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            y = i * (h - 1) / max(height - 1, 1)
            z = j * (w - 1) / max(width - 1, 1)
            top, left = min(int(y), max(h - 2, 0)), min(int(z), max(w - 2, 0))
            a, b = y - top, z - left
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = (1 - b) * x[..., top, left] + b * x[..., top, right]
            lower = (1 - b) * x[..., bottom, left] + b * x[..., bottom, right]
            out[..., i, j] = (1 - a) * upper + a * lower
    return out


def test_formula() -> None:
    rng = generator()
    for _ in range(4):
        h, w, height, width = (int(side) for side in rng.integers(1, 9, 4))
        x = torch.randn(2, 3, h, w, dtype=torch.float64)
        torch.testing.assert_close(resize(x, (height, width)), interpolated(x, height, width))


def test_same_size_is_not_copied() -> None:
    x = torch.randn(1, 2, 5, 5)
    assert resize(x, 5) is x and resize(x, (5, 5)) is x


def test_channels_last() -> None:
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    expected = interpolated(x.permute(0, 3, 1, 2), 7, 7).permute(0, 2, 3, 1)
    torch.testing.assert_close(resize_last(x, 7), expected)

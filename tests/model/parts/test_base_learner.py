"""The base learner's short cuts against the plain computation."""

import pytest
import torch
from torch.nn import functional as F

from model.backbone import build_backbone
from model.parts.base_learner import BINS, BaseLearner, PSPNet, conv_upsampled
from model.resize import resize


@pytest.mark.parametrize("size", [(9, 9), (7, 12), (60, 60), (3, 2)])
def test_convolution_over_upsampled_pools_equals_the_plain_one(size: tuple[int, int]) -> None:
    pools = [torch.randn(2, 3, bins, bins, dtype=torch.float64, requires_grad=True) for bins in BINS]
    weight = torch.randn(5, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(torch.cat([resize(pool, size) for pool in pools], dim=1), weight, padding=1)
    actual = conv_upsampled(pools, weight, size)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, [*pools, weight], upstream),
        torch.autograd.grad(expected, [*pools, weight], upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_feature_five_is_the_convolution_over_input_and_pools() -> None:
    learner = BaseLearner(16, base_classes=3).eval()
    f4 = torch.randn(2, 16, 9, 9)
    everything = torch.cat([f4, *(resize(pool, 9) for pool in learner.ppm(f4))], dim=1)
    torch.testing.assert_close(learner.features(f4), learner.bn(learner.conv(everything)), atol=1e-5, rtol=1e-4)


def test_psp_net_scores_every_pixel() -> None:
    network = PSPNet(build_backbone("tiny"), base_classes=4).eval()
    assert network(torch.randn(2, 3, 41, 49)).shape == (2, 5, 41, 49)

"""The base learner as a network for stage 1."""

import torch

from model.backbone import create_backbone
from model.parts.base_learner import BaseLearner, PSPNet


def test_psp_net_scores_every_pixel() -> None:
    backbone = create_backbone("tiny")
    network = PSPNet(backbone, BaseLearner(backbone.channels(backbone.levels)[-1], base_classes=4)).eval()
    assert network(torch.randn(2, 3, 41, 49)).shape == (2, 5, 41, 49)

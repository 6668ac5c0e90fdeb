"""VGG-16's stages against torchvision's layers."""

import torch
from torch import nn
from torchvision.models import vgg16_bn

from model.backbone import build_backbone
from model.released import load_backbone


@torch.inference_mode()
def test_stages_are_torchvisions_layers_with_pools_that_keep_the_edge() -> None:
    """Strides 8, 16 and 16: the last max-pool is left out, and odd sizes are rounded up (paper, section 5.1)."""
    theirs = vgg16_bn(weights=None).eval()
    for layer in theirs.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    ours = build_backbone("vgg").eval()
    load_backbone(ours, theirs.state_dict())
    images = torch.randn(1, 3, 65, 65)
    for actual, end in zip(ours(images), (24, 34, 43), strict=True):
        torch.testing.assert_close(actual, theirs.features[:end](images))
    assert [(x.shape[1], x.shape[2]) for x in ours(images)] == [(256, 9), (512, 5), (512, 5)]
    assert ours.channels == (256, 512, 512)

"""VGG-16's stages against torchvision's layers."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from model.backbone import create_backbone
from model.released import load_backbone
from tests.toy import torchvision_vgg


@torch.inference_mode()
def test_stages_are_torchvisions_layers_with_pools_that_keep_the_edge() -> None:
    """Strides 8, 16 and 16: the last max-pool is left out, and odd sizes are rounded up (paper, section 5.1)."""
    theirs = torchvision_vgg()
    for layer in theirs.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    ours = create_backbone("vgg").eval()
    load_backbone(ours, theirs.state_dict())
    images = torch.randn(1, 3, 65, 65)
    for info, end in zip(ours.maps, (14, 24, 34, 43), strict=True):
        actual = ours(images, [info.name])[info.name]
        torch.testing.assert_close(actual, theirs.features[:end](images))
        assert actual.shape[1:] == (info.channels, *[-(-65 // info.stride)] * 2)
    assert ours.levels == ("layer2", "layer3", "layer4") and ours.channels(ours.levels) == (256, 512, 512)


@torch.inference_mode()
def test_plain_vgg_shows_torchvisions_layers() -> None:
    theirs = vgg16(weights=None).eval()
    ours = create_backbone("vgg16").eval()
    load_backbone(ours, theirs.state_dict())
    images = torch.randn(1, 3, 67, 67)
    shown = ours(images, [info.name for info in ours.maps[::-1]])
    assert list(shown) == [f"features.{number}" for number in range(30, -1, -1)]
    x = images
    for info, layer in zip(ours.maps, theirs.features, strict=True):
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
        x = layer(x)
        torch.testing.assert_close(shown[info.name], x)
        assert x.shape[1:] == (info.channels, 67 // info.stride, 67 // info.stride)
    with pytest.raises(KeyError):
        ours(images, ["features.31"])

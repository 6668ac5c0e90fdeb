"""Stage sizes, and torchvision's networks under other names."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from model.backbone import build_backbone
from model.released import load_backbone


def randomise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize(
    ("name", "channels", "sizes"),
    [
        ("resnet50", (512, 1024, 2048), (9, 9, 9)),
        ("resnet101", (512, 1024, 2048), (9, 9, 9)),
        ("tiny", (128, 256, 512), (9, 9, 9)),
    ],
)
@torch.inference_mode()
def test_stages_have_the_published_strides(name: str, channels: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    outputs = build_backbone(name).eval()(torch.randn(1, 3, 65, 65))
    assert [(x.shape[1], x.shape[2]) for x in outputs] == list(zip(channels, sizes, strict=True))


def test_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        build_backbone("resnet34")


@torch.inference_mode()
def test_torchvision_weights_give_torchvision_features_before_dilation() -> None:
    theirs = resnet50(weights=None).eval()
    randomise(theirs)
    ours = build_backbone("resnet50", stem="torchvision").eval()
    load_backbone(ours, theirs.state_dict())
    images = torch.randn(1, 3, 65, 65)
    stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    torch.testing.assert_close(ours(images)[0], theirs.layer2(theirs.layer1(stem)))


@torch.inference_mode()
def test_without_dilated_first_blocks_it_is_torchvisions_dilated_network() -> None:
    """torchvision gives the first block of a dilated stage the dilation of the stage before."""
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    randomise(theirs)
    ours = build_backbone("resnet50", stem="torchvision", dilate_first=False).eval()
    load_backbone(ours, theirs.state_dict())
    images = torch.randn(1, 3, 65, 65)
    stages = [theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))]
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        stages.append(layer(stages[-1]))
    assert min(stage.std() for stage in stages) > 1e-2
    for actual, expected in zip(ours(images), stages[2:], strict=True):
        torch.testing.assert_close(actual, expected)
    released = build_backbone("resnet50", stem="torchvision").eval()
    load_backbone(released, theirs.state_dict())
    dilations = [conv.dilation[0] for name, conv in released.named_modules() if name.endswith("conv2")]
    assert dilations == [1] * 7 + [2] * 6 + [4] * 3
    assert (released(images)[1] - stages[3]).abs().max() > 1e-3

"""Stage sizes, and torchvision's networks under other names."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from model.backbone import create_backbone
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
    backbone = create_backbone(name).eval()
    outputs = backbone(torch.randn(1, 3, 65, 65), backbone.levels)
    assert backbone.channels(backbone.levels) == channels
    assert [(x.shape[1], x.shape[2]) for x in outputs.values()] == list(zip(channels, sizes, strict=True))


def test_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        create_backbone("resnet34")


@torch.inference_mode()
def test_torchvision_weights_give_torchvision_features_before_dilation() -> None:
    theirs = resnet50(weights=None).eval()
    randomise(theirs)
    ours = create_backbone("resnet50", stem="torchvision").eval()
    load_backbone(ours, theirs.state_dict())
    images = torch.randn(1, 3, 65, 65)
    stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    torch.testing.assert_close(ours(images, ["layer2"])["layer2"], theirs.layer2(theirs.layer1(stem)))


@torch.inference_mode()
def test_without_dilated_first_blocks_it_is_torchvisions_dilated_network() -> None:
    """torchvision gives the first block of a dilated stage the dilation of the stage before."""
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    randomise(theirs)
    ours = create_backbone("resnet50", stem="torchvision", dilate_first=False).eval()
    load_backbone(ours, theirs.state_dict())
    images = torch.randn(1, 3, 65, 65)
    stages = [theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))]
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        stages.append(layer(stages[-1]))
    assert min(stage.std() for stage in stages) > 1e-2
    for actual, expected in zip(ours(images, ours.levels).values(), stages[2:], strict=True):
        torch.testing.assert_close(actual, expected)
    released = create_backbone("resnet50", stem="torchvision").eval()
    load_backbone(released, theirs.state_dict())
    dilations = [conv.dilation[0] for name, conv in released.named_modules() if name.endswith("conv2")]
    assert dilations == [1] * 7 + [2] * 6 + [4] * 3
    assert (released(images, ["layer3"])["layer3"] - stages[3]).abs().max() > 1e-3


@torch.inference_mode()
def test_with_stride_32_it_is_torchvisions_network_and_its_sums_are_what_the_last_relu_sees() -> None:
    theirs = resnet50(weights=None).eval()
    randomise(theirs)
    ours = create_backbone("resnet50", stem="torchvision", output_stride=32).eval()
    load_backbone(ours, theirs.state_dict())
    expected: dict[str, torch.Tensor] = {}
    for name, module in theirs.named_modules():
        if name.startswith("layer"):
            where = f"{name.removesuffix('.relu')}.sum" if name.endswith("relu") else name
            module.register_forward_pre_hook(lambda _m, x, where=where: expected.update({where: x[0].clone()}))
    images = torch.randn(1, 3, 96, 70)
    theirs(images)
    asked = ["layer4", "layer2.0.sum", "layer3.5.sum", "layer4.2.sum", "layer1"]
    found = ours(images, asked)
    assert list(found) == asked
    known = {info.name: info for info in ours.maps}
    for name, actual in found.items():
        if name.endswith("sum"):
            torch.testing.assert_close(actual, expected[name], msg=name)
        else:
            x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
            for each in ("layer1", "layer2", "layer3", "layer4")[: int(name[5])]:
                x = getattr(theirs, each)(x)
            torch.testing.assert_close(actual, x)
        _, channels, stride = known[name]
        assert actual.shape[1:] == (channels, -(-96 // stride), -(-70 // stride))
    with pytest.raises(KeyError, match="layer9"):
        ours(images, ["layer9"])

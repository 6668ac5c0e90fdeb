"""Backbones cut into five stages `layer0..layer4`, with output stride 8 (ResNet) or 16 (VGG) (paper, section 5.1)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.models import vgg16_bn
from torchvision.models.resnet import Bottleneck

Stem = Literal["deep", "torchvision"]

RESNET_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "tiny": (1, 1, 1, 1)}
VGG_STAGE_ENDS = (6, 13, 23, 33, 42)  # last index of each stage in torchvision's `features`; the final max-pool goes


class Backbone(nn.Module):
    """Five stages in a row; `channels[i]` is the width of stage i's output."""

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images `(B, 3, H, W)` to the outputs of stages 2, 3 and 4."""
        f2 = self.layer2(self.layer1(self.layer0(images)))
        f3 = self.layer3(f2)
        return f2, f3, self.layer4(f3)


def build_backbone(name: str, stem: Stem = "deep") -> Backbone:
    """A backbone with random weights: `resnet50`, `resnet101`, `vgg`, or `tiny` (a ResNet for small experiments).

    `stem` applies to ResNets: `deep` has three 3x3 convolutions, `torchvision` one 7x7. Raises ValueError otherwise.
    """
    if name == "vgg":
        return _vgg()
    if name not in RESNET_BLOCKS:
        raise ValueError(f"backbone '{name}' is unknown: choose one of vgg, {', '.join(RESNET_BLOCKS)}")
    return _resnet(RESNET_BLOCKS[name], width=16 if name == "tiny" else 64, stem=stem)


def _resnet(blocks: Sequence[int], width: int, stem: Stem) -> Backbone:
    out = [4 * width * 2**i for i in range(4)]
    first = 2 * width if stem == "deep" else width
    stages = [
        _deep_stem(width) if stem == "deep" else _torchvision_stem(width),
        _resnet_stage(first, width, blocks[0], stride=1, dilation=1),
        _resnet_stage(out[0], 2 * width, blocks[1], stride=2, dilation=1),
        _resnet_stage(out[1], 4 * width, blocks[2], stride=1, dilation=2),
        _resnet_stage(out[2], 8 * width, blocks[3], stride=1, dilation=4),
    ]
    return Backbone(stages, (first, *out))


def _deep_stem(width: int) -> nn.Sequential:
    def conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(
        *conv(3, width, 2), *conv(width, width, 1), *conv(width, 2 * width, 1), nn.MaxPool2d(3, 2, padding=1)
    )


def _torchvision_stem(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    )


def _resnet_stage(inputs: int, width: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    outputs = Bottleneck.expansion * width
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    layers = [Bottleneck(inputs, width, stride, shortcut, dilation=dilation)]
    layers += [Bottleneck(outputs, width, dilation=dilation) for _ in range(1, blocks)]
    return nn.Sequential(*layers)


def _vgg() -> Backbone:
    features = vgg16_bn(weights=None).features
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    starts = (0, *(end + 1 for end in VGG_STAGE_ENDS))
    stages = [nn.Sequential(*features[a : end + 1]) for a, end in zip(starts, VGG_STAGE_ENDS, strict=False)]
    return Backbone(stages, (64, 128, 256, 512, 512))

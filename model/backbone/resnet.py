"""ResNets of output stride 8 or 32, with the deep stem of PSPNet or torchvision's (paper, section 5.1)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone.base import StagedBackbone

EXPANSION = 4  # a block's outputs for every channel of its 3x3 convolution
RESNET_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "tiny": (1, 1, 1, 1)}


class ResNet(StagedBackbone):
    """Beside its stages' outputs it shows, as `layer2.0.sum`, the sum of every block before its last ReLU."""

    def __init__(self, stages: Sequence[nn.Sequential], channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__(stages, channels, strides)
        self.maps = tuple(
            each
            for info, stage in zip(self.maps, stages[1:], strict=True)
            for each in (*(info._replace(name=f"{info.name}.{number}.sum") for number in range(len(stage))), info)
        )

    def run_stage(self, name: str, stage: nn.Module, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> Tensor:
        """As in StagedBackbone."""
        if not any(one.startswith(f"{name}.") for one in wanted):
            return stage(x)
        for number, block in stage.named_children():
            assert isinstance(block, Bottleneck)
            total = block.sum(x)
            if (key := f"{name}.{number}.sum") in wanted:
                found[key] = total
            x = F.relu(total)
        return x


def resnet(
    name: str,
    stem: Literal["deep", "torchvision"] = "deep",
    dilate_first: bool = True,
    output_stride: Literal[8, 32] = 8,
) -> ResNet:
    """A ResNet of `RESNET_BLOCKS` with random weights.

    `stem`: `deep` has three 3x3 convolutions, `torchvision` one 7x7. `output_stride`: 8 has stages 3 and 4 dilated by 2
    and 4 instead of strided. `dilate_first`: off, the first block of those keeps the dilation of the stage before, 1
    and 2, as in SCCAN's backbone and torchvision's dilated ResNets.
    """
    blocks, width = RESNET_BLOCKS[name], 16 if name == "tiny" else 64
    out = [4 * width * 2**i for i in range(4)]
    first = 2 * width if stem == "deep" else width
    third, fourth = (2, 4) if dilate_first else (1, 2)
    stages = [
        _deep_stem(width) if stem == "deep" else _torchvision_stem(width),
        _stage(first, width, blocks[0], stride=1),
        _stage(out[0], 2 * width, blocks[1], stride=2),
    ]
    if output_stride == 8:
        stages.append(_stage(out[1], 4 * width, blocks[2], first_dilation=third, dilation=2))
        stages.append(_stage(out[2], 8 * width, blocks[3], first_dilation=fourth, dilation=4))
        return ResNet(stages, out, (4, 8, 8, 8))
    stages += [_stage(out[1], 4 * width, blocks[2], stride=2), _stage(out[2], 8 * width, blocks[3], stride=2)]
    backbone = ResNet(stages, out, (4, 8, 16, 32))
    backbone.size_multiple, backbone.size_offset = 1, 0
    return backbone


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al., CVPR 2016), under torchvision's names."""

    def __init__(
        self, inputs: int, width: int, stride: int = 1, dilation: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs, h, w)` to `(B, 4 * width, h / stride, w / stride)`."""
        return F.relu_(self.sum(x))

    def sum(self, x: Tensor) -> Tensor:
        """Branch and shortcut added, before the last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x)).add_(shortcut)


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


def _stage(
    inputs: int, width: int, blocks: int, stride: int = 1, first_dilation: int = 1, dilation: int = 1
) -> nn.Sequential:
    outputs = EXPANSION * width
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    layers = [Bottleneck(inputs, width, stride, first_dilation, shortcut)]
    layers += [Bottleneck(outputs, width, dilation=dilation) for _ in range(1, blocks)]
    return nn.Sequential(*layers)

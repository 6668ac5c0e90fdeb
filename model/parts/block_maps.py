"""What methods share that match the maps of every block of a plain backbone (HSNet, DCAMA)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import Backbone
from util.config import Config
from util.errors import UserError

STAGES = {"2": 8, "3": 16, "4": 32}  # and their strides
WIDTHS = (16, 64, 128)  # channels after each convolution of an encoder
KERNELS = {"2": (5, 5, 3), "3": (5, 3, 3), "4": (3, 3, 3)}  # of a stage's encoder
VGG_MAPS = {
    "2": ("features.17", "features.19", "features.21"),
    "3": ("features.24", "features.26", "features.28"),
    "4": ("features.30",),
}


def plain_backbone(cfg: Config, **others: Any) -> Config:
    """The configuration with torchvision's own ResNet or VGG-16, and other keys changed too."""
    vgg = {"backbone": "vgg16"} if cfg.backbone_name == "vgg" else {}
    return cfg.model_copy(update={"stem": "torchvision", "output_stride": 32, **vgg, **others})


def block_maps(backbone: Backbone, kind: str) -> dict[str, tuple[str, ...]]:
    """By stage the names of its blocks' maps before their last ReLU, of timm's models of all maps of its stride.

    UserError naming the method if there are none.
    """
    names = [info.name for info in backbone.maps]
    if VGG_MAPS["4"][0] in names:
        return VGG_MAPS
    stages = {
        stage: tuple(name for name in names if name.startswith(f"layer{stage}.") and name.endswith(".sum"))
        for stage in STAGES
    }
    if not any(stages.values()):
        stages = {
            stage: tuple(info.name for info in backbone.maps if info.stride == stride)
            for stage, stride in STAGES.items()
        }
    if not all(stages.values()):
        raise UserError(
            f"backbone: {kind} takes resnet50, resnet101, vgg16 or a model of timm with maps of strides 8, 16 and 32"
        )
    return stages


def conv_blocks(convs: Sequence[nn.Module], widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Convolutions, each with a group norm over all positions and a ReLU behind it."""
    layers = ((conv, nn.GroupNorm(4, width), nn.ReLU()) for conv, width in zip(convs, widths, strict=True))
    return nn.Sequential(*(layer for three in layers for layer in three))


def conv3x3_relu(*channels: int, last_relu: bool = True) -> nn.Sequential:
    """3x3 convolutions from one number of channels to the next, with ReLUs between and behind them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def all_pixel_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over all pixels of `truth (B, H, W)`, of which 255 counts as background; `logits (B, 2, H, W)`."""
    return F.cross_entropy(logits, (truth == 1).long())

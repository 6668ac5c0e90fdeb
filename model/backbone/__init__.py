"""Image encoders behind one interface; `build_backbone` knows their names."""

from typing import Literal

from model.backbone.base import Backbone
from model.backbone.resnet import RESNET_BLOCKS, resnet
from model.backbone.vgg import vgg16

__all__ = ["Backbone", "build_backbone"]


def build_backbone(name: str, stem: Literal["deep", "torchvision"] = "deep", dilate_first: bool = True) -> Backbone:
    """A backbone with random weights: `resnet50`, `resnet101`, `vgg`, or `tiny` (a ResNet for small experiments).

    `stem` and `dilate_first` apply to ResNets, see `resnet`. Raises ValueError for another name.
    """
    if name == "vgg":
        return vgg16()
    if name not in RESNET_BLOCKS:
        raise ValueError(f"backbone '{name}' is unknown: choose one of vgg, {', '.join(RESNET_BLOCKS)}")
    return resnet(name, stem, dilate_first)

"""Image encoders behind one interface; `create_backbone` knows their names, `build.build_backbone` configurations."""

from typing import Literal

from model.backbone.base import Backbone, MapInfo
from model.backbone.resnet import RESNET_BLOCKS, resnet
from model.backbone.vgg import PlainVGG, vgg16_bn

__all__ = ["Backbone", "MapInfo", "create_backbone"]


def create_backbone(
    name: str,
    stem: Literal["deep", "torchvision"] = "deep",
    dilate_first: bool = True,
    output_stride: Literal[8, 32] = 8,
) -> Backbone:
    """A backbone with random weights: `resnet50`, `resnet101`, `vgg`, `vgg16` or `tiny` (a small ResNet).

    `stem`, `dilate_first` and `output_stride` apply to ResNets, see `resnet`. Raises ValueError for another name.
    """
    if name in ("vgg", "vgg16"):
        return vgg16_bn() if name == "vgg" else PlainVGG()
    if name not in RESNET_BLOCKS:
        raise ValueError(f"backbone '{name}' is unknown: choose one of vgg, vgg16, {', '.join(RESNET_BLOCKS)}")
    return resnet(name, stem, dilate_first, output_stride)

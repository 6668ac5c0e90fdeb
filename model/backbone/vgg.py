"""VGG-16 with batch norm, of output stride 16 (paper, section 5.1)."""

from torch import nn

from model.backbone.base import StagedBackbone

STAGE_ENDS = (6, 13, 23, 33, 42)  # last index of each stage in torchvision's `features`; the final max-pool goes


def vgg16() -> StagedBackbone:
    """VGG-16 with random weights, cut into five stages."""
    from torchvision.models import vgg16_bn  # no other backbone needs torchvision

    features = vgg16_bn(weights=None).features
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    starts = (0, *(end + 1 for end in STAGE_ENDS))
    stages = [nn.Sequential(*features[a : end + 1]) for a, end in zip(starts, STAGE_ENDS, strict=False)]
    return StagedBackbone(stages, (128, 256, 512, 512), (4, 8, 16, 16))

"""VGG-16: with batch norm, of output stride 16 (paper, section 5.1), and torchvision's own, plain and of stride 32."""

from collections.abc import Sequence

from torch import Tensor, nn

from model.backbone.base import Backbone, MapInfo, StagedBackbone

STAGE_ENDS = (6, 13, 23, 33, 42)  # last index of each stage in torchvision's `features`; the final max-pool goes
PLAIN_WIDTHS, PLAIN_CONVS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)  # channels and convolutions of each stage


def vgg16_bn() -> StagedBackbone:
    """VGG-16 with batch norm and random weights, cut into five stages."""
    from torchvision import models  # no other backbone needs torchvision

    features = models.vgg16_bn(weights=None).features
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    starts = (0, *(end + 1 for end in STAGE_ENDS))
    stages = [nn.Sequential(*features[a : end + 1]) for a, end in zip(starts, STAGE_ENDS, strict=False)]
    return StagedBackbone(stages, (128, 256, 512, 512), (4, 8, 16, 16))


class PlainVGG(Backbone):
    """VGG-16 without batch norm; its maps are the outputs of torchvision's layers, `features.0` to `features.30`."""

    levels = ("features.16", "features.23", "features.30")
    size_multiple, size_offset = 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.features, inputs = nn.Sequential(), 3
        self.maps = ()
        for stage, (width, convs) in enumerate(zip(PLAIN_WIDTHS, PLAIN_CONVS, strict=True)):
            for _ in range(convs):
                self.features.extend([nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()])
                inputs = width
            self.features.append(nn.MaxPool2d(2))
            names = [f"features.{number}" for number in range(len(self.maps), len(self.features))]
            self.maps += tuple(MapInfo(name, width, 2 ** (stage + (name == names[-1]))) for name in names)

    def forward(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """As in Backbone; layers behind the last named map are not computed."""
        self.channels(names)
        found, x = dict[str, Tensor](), images
        for info, layer in zip(self.maps, self.features, strict=True):
            x = layer(x)
            if info.name in names:
                found[info.name] = x
            if len(found) == len(set(names)):
                break
        return {name: found[name] for name in names}

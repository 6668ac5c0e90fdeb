"""VGG-16: with batch norm, of output stride 16 (paper, section 5.1), and torchvision's own, plain and of stride 32."""

from collections.abc import Sequence

from torch import Tensor, nn

from model.backbone.base import Backbone, MapInfo, StagedBackbone

STAGE_ENDS = (6, 13, 23, 33, 42)  # last index of each stage in torchvision's `features`; the final max-pool goes


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
        from torchvision.models import vgg

        self.features = vgg.make_layers(vgg.cfgs["D"])
        channels, stride, maps = 3, 1, []
        for number, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                channels = layer.out_channels
            elif isinstance(layer, nn.MaxPool2d):
                stride *= 2
            else:
                layer.inplace = False  # so that a map before it stays as it is
            maps.append(MapInfo(f"features.{number}", channels, stride))
        self.maps = tuple(maps)

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

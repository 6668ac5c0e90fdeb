"""The base learner: a PSPNet that knows the base classes (Zhao et al., CVPR 2017; used as in BAM, CVPR 2022)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import Backbone
from model.released import BASE_LEARNER
from model.resize import resize

BINS = (1, 2, 3, 6)
HIDDEN = 512


class PyramidPooling(nn.Module):
    """Average pooling to 1, 2, 3 and 6 cells a side, each reduced to a quarter of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(channels, channels // 4, 1, bias=False),
                nn.BatchNorm2d(channels // 4),
                nn.ReLU(inplace=True),
            )
            for size in BINS
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, C, h, w)` to four maps `(B, C / 4, bin, bin)`, not yet resized."""
        return [pool(x) for pool in self.features]


class BaseLearner(nn.Module):
    """Pyramid pooling and classifier on the backbone's last stage.

    Args: its channels, and the number of base classes; class 0 of the `1 + base_classes` is everything else.
    """

    def __init__(self, channels: int, base_classes: int) -> None:
        super().__init__()
        self.ppm = PyramidPooling(channels)
        self.conv = nn.Conv2d(2 * channels, HIDDEN, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(HIDDEN)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(HIDDEN, 1 + base_classes, 1)

    def features(self, f4: Tensor) -> Tensor:
        """Feature "5", before its ReLU: `(B, C, h, w)` to `(B, 512, h, w)`."""
        pools = [resize(pool, f4.shape[-2:]) for pool in self.ppm(f4)]
        return self.bn(self.conv(torch.cat([f4, *pools], dim=1)))

    def classify(self, f5: Tensor) -> Tensor:
        """Base logits `(B, 1 + base classes, h, w)` of feature "5"."""
        return self.classifier(self.dropout(F.relu(f5)))

    def forward(self, f4: Tensor) -> Tensor:
        """`(B, C, h, w)` to base logits `(B, 1 + base classes, h, w)`."""
        return self.classify(self.features(f4))


class PSPNet(nn.Module):
    """Backbone and base learner as one network, for training the base learner (stage 1); a frozen backbone stays."""

    released_names = BASE_LEARNER

    def __init__(self, backbone: Backbone, head: BaseLearner) -> None:
        super().__init__()
        assert head.conv.in_channels == 2 * backbone.channels(backbone.levels)[-1], "the head takes the last level"
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` to logits `(B, 1 + base classes, H, W)`."""
        level = self.backbone.levels[-1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            f4 = self.backbone(images, [level])[level]
        return resize(self.head(f4), images.shape[-2:])

    def train(self, mode: bool = True) -> "PSPNet":
        """Set the mode of all but a frozen backbone."""
        super().train(mode)
        self.backbone.train(mode and not self.backbone.frozen)
        return self

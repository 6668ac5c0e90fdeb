"""The base learner: a PSPNet that knows the base classes (Zhao et al., CVPR 2017; used as in BAM, CVPR 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import Backbone
from model.products import matmul
from model.resize import resize
from model.winograd import conv3x3

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
        """Feature "5", before its ReLU: `(B, C, h, w)` to `(B, 512, h, w)`.

        The convolution over cat(f4, upsampled pools) is a sum over both halves of its input channels.
        """
        channels = f4.shape[1]
        own = conv3x3(f4, self.conv.weight[:, :channels], self.conv.bias)
        return self.bn(own + conv_upsampled(self.ppm(f4), self.conv.weight[:, channels:], own.shape[-2:]))

    def classify(self, f5: Tensor) -> Tensor:
        """Base logits `(B, 1 + base classes, h, w)` of feature "5"."""
        return self.classifier(self.dropout(F.relu(f5)))

    def forward(self, f4: Tensor) -> Tensor:
        """`(B, C, h, w)` to base logits `(B, 1 + base classes, h, w)`."""
        return self.classify(self.features(f4))


class PSPNet(nn.Module):
    """Backbone and base learner as one network, for training the base learner (stage 1); a frozen backbone stays."""

    def __init__(self, backbone: Backbone, base_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = BaseLearner(backbone.channels[-1], base_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` to logits `(B, 1 + base classes, H, W)`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            f4 = self.backbone(images)[2]
        return resize(self.head(f4), images.shape[-2:])

    def train(self, mode: bool = True) -> "PSPNet":
        """Set the mode of all but a frozen backbone."""
        super().train(mode)
        self.backbone.train(mode and not self.backbone.frozen)
        return self


def conv_upsampled(pools: list[Tensor], weight: Tensor, size: Sequence[int]) -> Tensor:
    """3x3 convolution, padding 1, over cat(resize(pool, size) for pool in pools), without making that map.

    Resizing is linear, so the nine taps are applied to the few cells of each pool and their results spread with the
    shifted interpolation weights. `pools`: `(B, c_i, bin_i, bin_i)`; `weight`: `(O, sum c_i, 3, 3)`; returns
    `(B, O, *size)`.
    """
    taps, spread = [], []
    for pool, kernel in zip(pools, weight.split([p.shape[1] for p in pools], dim=1), strict=True):
        taps.append(torch.einsum("bcn,ocyx->boyxn", pool.flatten(2), kernel).flatten(2))  # (B, O, 9 * cells)
        spread.append(_shifted_interpolation(pool.shape[-1], size, pool).flatten(0, 2))  # (9 * cells, h * w)
    return (matmul(torch.cat(taps, dim=2), torch.cat(spread))).unflatten(-1, size)


def _shifted_interpolation(cells: int, size: Sequence[int], like: Tensor) -> Tensor:
    """How much of each cell every tap (dy, dx) sees at every position: `(3, 3, cells * cells, h * w)`."""
    eye = torch.eye(cells * cells, dtype=like.dtype, device=like.device).view(1, -1, cells, cells)
    padded = F.pad(resize(eye, size), (1, 1, 1, 1))[0]  # (cells * cells, h + 2, w + 2)
    height, width = size
    return torch.stack(
        [torch.stack([padded[:, y : y + height, x : x + width].flatten(1) for x in range(3)]) for y in range(3)]
    )

"""What the network asks of an image encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.resize import resize

DIGEST = ".sha256"  # ending of the name under which checkpoints have the digest of weights that they leave out


class Backbone(nn.Module):
    """Three feature maps of an image, from finer and plainer to coarser and richer.

    `channels`: theirs. Images have sides of `step` * m + `offset` pixels. `frozen`: the weights never change, not even
    in training the base learner, and checkpoints leave them out.
    """

    channels: tuple[int, int, int]
    step, offset = 8, 1
    frozen = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images `(B, 3, H, W)`, normalised as ImageNet's are, to f2, f3, f4 `(B, channels[i], h, w)`."""
        raise TypeError(f"{type(self).__name__} does not say how it sees an image")

    def joined(self, images: Tensor) -> Tensor:
        """The three maps, f2 at the size of f3, as one `(B, sum(channels), h, w)`; ValueError if f4 has another."""
        f2, f3, f4 = self(images)
        if f3.shape[-2:] != f4.shape[-2:]:
            raise ValueError(f"its last two maps are {f3.shape[-1]} and {f4.shape[-1]} positions wide")
        return torch.cat([resize(f2, f3.shape[-2:]), f3, f4], dim=1)

    def nearest(self, size: int) -> int:
        """The largest side, up to `size` if there is one, that an image may have."""
        return max((size - self.offset) // self.step, 1) * self.step + self.offset

    def fetch(self) -> None:
        """Load pretrained weights, where the backbone knows its own."""

    def complete(self) -> None:
        """Load the weights that checkpoints leave out."""


class StagedBackbone(Backbone):
    """Five stages in a row, of which the last three show their outputs; `channels` as in Backbone."""

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = stages
        c2, c3, c4 = channels
        self.channels = c2, c3, c4

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f2 = self.layer2(self.layer1(self.layer0(images)))
        f3 = self.layer3(f2)
        return f2, f3, self.layer4(f3)

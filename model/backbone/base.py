"""What methods ask of an image encoder."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class MapInfo(NamedTuple):
    """A feature map that a backbone can give."""

    name: str
    channels: int
    stride: int  # pixels of the image per position


class Backbone(nn.Module):
    """An image encoder that says which maps it has and gives those that are asked for.

    `maps`: all of them, from finer to coarser. `levels`: the names of those that methods of few-shot segmentation
    usually take, the last three stages, from finer and plainer to coarser and richer. Images have sides of
    `size_multiple` * m + `size_offset` pixels. `frozen`: the weights never change, not even in training the base
    learner, and checkpoints hold a digest in their place.
    """

    name = ""
    maps: tuple[MapInfo, ...]
    levels: tuple[str, ...]
    size_multiple, size_offset = 8, 1
    frozen = False

    def forward(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Maps `(B, channels, h, w)` by name of images `(B, 3, H, W)`, normalised as ImageNet's are.

        KeyError for a name that is not among `maps`.
        """
        raise TypeError(f"{type(self).__name__} does not say how it sees an image")

    def channels(self, names: Sequence[str]) -> tuple[int, ...]:
        """The channels of the named maps; KeyError for a name that is not among `maps`."""
        known = {info.name: info.channels for info in self.maps}
        return tuple(known[name] for name in names)

    def valid_size(self, size: int) -> int:
        """The largest side, up to `size` if there is one, that an image may have."""
        return max((size - self.size_offset) // self.size_multiple, 1) * self.size_multiple + self.size_offset

    def digest(self, exact: bool = False) -> Tensor:
        """What tells its weights from others, where checkpoints exclude them."""
        raise TypeError(f"the weights of {type(self).__name__} are part of checkpoints")

    def last_stage(self) -> nn.Module | None:
        """What makes the last level of the one before it, both `(B, C, h, w)`; None where it cannot be run alone."""
        return None

    def skip_last_norm(self) -> None:
        """Show maps as the blocks give them, without the last norm, where the backbone has one behind its blocks."""

    def load_pretrained(self) -> None:
        """Load pretrained weights, where the backbone knows its own."""

    def load_excluded_weights(self) -> None:
        """Load the weights that checkpoints exclude."""


class StagedBackbone(Backbone):
    """Five stages in a row, named layer0 to layer4, of which the last four show their outputs.

    Args: the stages; channels and strides of the last four.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = stages
        names = ("layer1", "layer2", "layer3", "layer4")
        self.maps = tuple(map(MapInfo, names, channels, strides))
        self.levels = names[1:]

    def forward(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """As in Backbone; stages behind the last named map are not computed."""
        wanted, found = set(names), dict[str, Tensor]()
        if unknown := wanted - {info.name for info in self.maps}:
            raise KeyError(f"{min(unknown)} is not among the maps of this backbone")
        x = images
        for name, stage in self.named_children():
            x = self.run_stage(name, stage, x, wanted, found)
            if name in wanted:
                found[name] = x
            if len(found) == len(wanted):
                break
        return {name: found[name] for name in names}

    def last_stage(self) -> nn.Module:
        """As in Backbone."""
        return self.layer4

    def run_stage(self, name: str, stage: nn.Module, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> Tensor:
        """The output of a stage; a subclass adds the maps within it that are wanted to `found`."""
        return stage(x)

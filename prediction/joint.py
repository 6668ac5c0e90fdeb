"""A method and a network that segment together, for one and two masks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.methods.method import Scores
from prediction.masks import MaskSource
from prediction.outlines import SURE
from prediction.predictor import Predictor
from util.image import ImageSource


class JointPredictor(Predictor):
    """The mean of two predictors' margins; all else is the first one's. Both must pad images.

    Where the first finds nothing, nothing is found: a network of few classes finds something nearly everywhere.

    Args: a predictor of a training-free method; another predictor on the same device.
    """

    def __init__(self, first: Predictor, second: Predictor) -> None:
        super().__init__(first.model, first.size, first.shot, first.device, first.amp, sharpens=first.sharpens)
        self.cache, self.second = first.cache, second

    def set_support(
        self,
        images: ImageSource | Iterable[ImageSource] | Mapping[str, Any],
        masks: MaskSource | Iterable[MaskSource] | None = None,
    ) -> None:
        """As in Predictor; lists, no iterators, as they are read twice."""
        super().set_support(images, masks)
        self.second.set_support(images, masks)

    @torch.inference_mode()
    def scores(self, inputs: Sequence[Tensor]) -> list[list[Scores]]:
        """As in Predictor, at the network's size; the second predictor sees the first one's inputs, reduced."""
        side = self.second.size
        small = F.interpolate(torch.stack(list(inputs)), size=(side, side), mode="bilinear", antialias=True)
        both = super().scores(inputs), self.second.scores(list(small))
        return [[self._mean(*pair) for pair in zip(*item, strict=True)] for item in zip(*both, strict=True)]

    def _mean(self, first: Scores, second: Scores) -> Scores:
        margins = torch.stack([first.margin_at(self.size), second.margin_at(self.second.size, self.size)], dim=1)
        counted = margins[:, : 2 if (margins[:, 0] > 0).any() else 1]  # (1, 2 or 1, size, size)
        half = counted.clamp(-SURE, SURE).mean(1, keepdim=True) / 2
        final = torch.cat([-half, half], dim=1)
        return Scores(final, final)

"""The nearest prototype, the simplest method: every position to the nearer of two mean features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.methods.method import Features, Method, Scores
from model.parts.base_learner import BaseLearner
from model.parts.prior import foreground, prototypes
from util.config import Config


class Prototype(Method):
    """Cosines of the backbone's last level with the support's foreground and background prototypes.

    Args: backbone and the name of that level; a base learner, which only decides which weights the backbone has;
    the side f at which masks are averaged.
    """

    def __init__(
        self, backbone: Backbone, level: str, base_learner: BaseLearner | None = None, feature_size: int = 64
    ) -> None:
        super().__init__(backbone, (level,), base_learner)
        self.level, self.feature_size = level, feature_size

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "Prototype":
        """As in Method."""
        return cls(backbone, backbone.levels[-1], base_learner, cfg.feature_size)

    def support_state(self, support: Features, masks: Tensor) -> Tensor:
        """Prototypes `(B, 2, C)`, foreground and background, means over the shots."""
        features = support[self.level].unflatten(0, masks.shape[:2])
        return prototypes(features, foreground(masks, self.feature_size, features.dtype)).mean(1)

    @torch.no_grad()
    def score(self, query: Features, state: Tensor, episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the level's size."""
        unit = F.normalize(query[self.level], dim=1)  # (B, C, h, w)
        final = torch.einsum("bchw,bnc->bnhw", unit, F.normalize(state, dim=-1)).flip(1)
        return Scores(final, final)

"""The training-free prior as a method: where the query's features are most like the support's object."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.backbone import Backbone
from model.methods.method import Features, Method, Role, Scores
from model.parts.base_learner import BaseLearner
from model.parts.prior import foreground, level_prior, prototypes, select_prior
from util.config import Config


class Prior(Method):
    """HMNet's foreground prior in [0, 1], of which 0.5 and more is the object (paper, section 4.1).

    Args: backbone and the name of its last level; with a base learner its feature counts too; feature size f.
    """

    def __init__(
        self, backbone: Backbone, level: str, base_learner: BaseLearner | None = None, feature_size: int = 64
    ) -> None:
        super().__init__(backbone, (level,), base_learner)
        self.level, self.feature_size = level, feature_size

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "Prior":
        """As in Method."""
        return cls(backbone, backbone.levels[-1], base_learner, cfg.feature_size)

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method: stage 4 and, with a base learner, its feature, `(B, channels, h, w)` each."""
        f4 = maps[self.level]
        return {"f4": f4} if self.base_learner is None else {"f4": f4, "f5": self.base_learner.features(f4)}

    def support_state(self, support: Features, masks: Tensor) -> dict[str, Tensor]:
        """Foreground and background prototypes of every shot, `(B, K, 2, channels)` by feature."""
        mask = foreground(masks, self.feature_size, support["f4"].dtype)
        return {name: prototypes(level.unflatten(0, masks.shape[:2]), mask) for name, level in support.items()}

    @torch.no_grad()
    def score(self, query: Features, state: dict[str, Any], episode_class: Tensor | None = None) -> Scores:
        """As in Method, `(B, 2, f, f)`: 1 - prior and prior."""
        prior = select_prior([level_prior(query[name], state[name], self.feature_size) for name in state])[:, :1]
        final = torch.cat([1 - prior, prior], dim=1)
        return Scores(final, final)

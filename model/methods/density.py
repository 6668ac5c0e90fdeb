"""Density ratio on the sphere: whether a feature is likelier among the support's object or among its background."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.methods.method import Features, Method, Scores
from model.parts.base_learner import BaseLearner
from model.parts.maps import positions, unit
from util.config import Config

CHUNK = 512  # query positions compared at once


class Density(Method):
    """Ratio of two densities of unit features, each a mean of von Mises-Fisher kernels around the support's positions.

    Args: backbone and the name of its level; the kernel's concentration: its value falls by e where the
    cosine falls by the concentration's inverse. Both densities count alike, however large
    the object is in the supports (after FROST's idea of a ratio in place of a distance).
    """

    uses_base_learner = False

    def __init__(self, backbone: Backbone, level: str, concentration: float) -> None:
        super().__init__(backbone, (level,))
        self.level, self.concentration = level, concentration

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "Density":
        """As in Method."""
        return cls(backbone, backbone.levels[-1], cfg.density_concentration)

    @torch.no_grad()
    def support_state(self, support: Features, masks: Tensor) -> dict[str, Tensor]:
        """Unit vectors `(B, n, C)` of all shots' positions and their log weights `(B, 2, n)`, background first."""
        features = support[self.level].float()
        share = F.adaptive_avg_pool2d(
            (masks.flatten(0, 1) == 1).float().unsqueeze(1), features.shape[-2:]
        )  # (B K, 1, h, w)
        vectors = positions(unit(features), masks.shape[:2])  # (B, n, C)
        share = share.flatten(1).unflatten(0, masks.shape[:2]).flatten(1)  # (B, n)
        weights = torch.stack([1 - share, share], dim=1)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        return {"vectors": vectors, "log_weights": weights.clamp(min=1e-30).log()}

    @torch.no_grad()
    def score(self, query: Features, state: dict[str, Tensor], episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the level's size: log densities of background and object, without their common factor."""
        features = unit(query[self.level].float())
        densities = [
            log_densities(*each, self.concentration)
            for each in zip(features.flatten(2).movedim(1, -1), state["vectors"], state["log_weights"], strict=True)
        ]
        final = torch.stack(densities).unflatten(-1, features.shape[-2:])
        return Scores(final, final)


def log_densities(query: Tensor, support: Tensor, log_weights: Tensor, concentration: float) -> Tensor:
    """Log of weighted means of kernels, `(2, m)`, at unit vectors `(m, C)` around unit vectors `(n, C)`.

    `log_weights (2, n)`. The kernel exp(concentration * (cosine - 1)) has the von Mises-Fisher density's shape; its
    normalising constant is left out, as it is the same for both.
    """
    parts = []
    for rows in query.split(CHUNK):
        exponents = concentration * (rows @ support.T - 1)  # (chunk, n)
        parts.append(torch.stack([torch.logsumexp(exponents + each, dim=1) for each in log_weights]))
    return torch.cat(parts, dim=1)

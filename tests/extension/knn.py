"""A method in one file, as docs/extending.md shows it: the nearest support cells vote, with one learnt temperature."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.loss import cross_entropy
from model.methods.method import Features, Method, Role, Scores
from model.parts.base_learner import BaseLearner
from model.parts.prior import foreground
from util.config import Config


class NearestNeighbours(Method):
    """Every query cell is what its most similar support cells are. Args: backbone, the name of its map, neighbours."""

    uses_base_learner = False

    def __init__(self, backbone: Backbone, level: str, neighbours: int = 5) -> None:
        super().__init__(backbone, (level,))
        self.level, self.neighbours = level, neighbours
        self.temperature = nn.Parameter(torch.tensor(10.0))

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "NearestNeighbours":
        return cls(backbone, backbone.levels[-1])

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        return {"unit": nn.functional.normalize(maps[self.level], dim=1)}  # (B, C, h, w)

    def support_state(self, support: Features, masks: Tensor) -> dict[str, Tensor]:
        unit = support["unit"].unflatten(0, masks.shape[:2])  # (B, K, C, h, w)
        return {
            "cells": unit.transpose(1, 2).flatten(2),  # (B, C, K * h * w)
            "labels": foreground(masks, unit.shape[-1], unit.dtype).flatten(1),  # (B, K * h * w)
        }

    def score(self, query: Features, state: dict[str, Tensor], episode_class: Tensor | None = None) -> Scores:
        unit = query["unit"]
        cosines = unit.flatten(2).transpose(1, 2) @ state["cells"]  # (B, h * w, K * h * w)
        best, places = cosines.topk(min(self.neighbours, cosines.shape[-1]))
        labels = state["labels"].unsqueeze(1).expand_as(cosines).gather(2, places)
        share = (labels * (self.temperature * best).softmax(-1)).sum(-1).unflatten(1, unit.shape[-2:])
        final = (torch.stack([1 - share, share], dim=1) + 1e-3).log()
        return Scores(final, final)

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(scores.final, truth)}

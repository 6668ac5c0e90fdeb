"""FSSDINO (arXiv 2602.07550): several prototypes a class by k-means, and the Gram matrix of its features."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.methods.method import Features, Method, Scores
from model.parts.base_learner import BaseLearner
from model.parts.maps import enlarge, image_size
from util.config import Config

SEED = 0
TOLERANCE = 1e-4  # of the squared sum of the centres' moves
MAX_ROUNDS = 300
NOT_SHOWN = -1e4  # score of a class that the support does not show; not infinite, to be resized


class ClassModel(NamedTuple):
    """What is known of one class; B stands first where several support sets are stacked."""

    prototypes: Tensor  # (k, C); rows of zeros behind the first `known`
    known: Tensor  # (), prototypes; 0 where no position shows the class
    gram: Tensor  # (C, C), mean outer product of unit vectors


class FSSDINO(Method):
    """Segments by the frozen last level alone; meant for DINOv3's vision transformers.

    Args: backbone and the name of that level; prototypes of a class.
    """

    uses_base_learner = False
    corrections: ClassVar[Mapping[str, str]] = {
        "last_norm": "the level is taken behind the last norm; it is taken in front of it",
        "unit_gram": "unit vectors are compared with the Gram matrix of unit vectors; the query's are as they are",
    }

    def __init__(self, backbone: Backbone, level: str, clusters: int) -> None:
        super().__init__(backbone, (level,))
        self.level, self.clusters = level, clusters

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "FSSDINO":
        """As in Method."""
        if "last_norm" not in cfg.corrections:
            backbone.skip_last_norm()  # as released, where `hidden_states[-1]` is the last block's output (quirk)
        return cls(backbone, backbone.levels[-1], cfg.fssdino_clusters)

    @torch.no_grad()
    def support_state(self, support: Features, masks: Tensor) -> ClassModel:
        """As in Method: models of background and object, `(B, 2, ...)`."""
        features = support[self.level].float().unflatten(0, masks.shape[:2])
        coarse = F.interpolate((masks == 1).float(), size=features.shape[-2:], mode="nearest") == 1  # (B, K, h, w)
        models = []
        for shots, mask in zip(features, coarse, strict=True):
            vectors = shots.movedim(1, -1)  # (K, h, w, C)
            models.append(model_classes([vectors[~mask], vectors[mask]], self.clusters))
        return ClassModel(*(torch.stack(parts) for parts in zip(*models, strict=True)))

    @torch.no_grad()
    def score(self, query: Features, state: ClassModel, episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the images' size."""
        features = query[self.level].float()
        size = image_size(self.backbone, self.level, features.shape[-2:])
        features = F.normalize(features, dim=1) if "unit_gram" in self.corrected else features  # else as is (quirk)
        final = torch.stack(
            [class_scores(each, ClassModel(*(part[b] for part in state)), size) for b, each in enumerate(features)]
        )
        return Scores(final, final)


def model_classes(vectors: list[Tensor], clusters: int) -> ClassModel:
    """Models `(classes, ...)` of the vectors `(n, C)` of every class, background first; drawn from SEED."""
    draws, spare = np.random.RandomState(SEED), torch.Generator().manual_seed(SEED)
    prototypes = [k_means(each, clusters, draws, spare) for each in vectors]
    padded = [F.pad(each, (0, 0, 0, clusters - len(each))) for each in prototypes]
    counts = torch.tensor([len(each) for each in prototypes], device=vectors[0].device)
    return ClassModel(torch.stack(padded), counts, torch.stack([gram(each) for each in vectors]))


def k_means(x: Tensor, clusters: int, draws: np.random.RandomState, spare: torch.Generator) -> Tensor:
    """Centres `(clusters, C)` of vectors `(n, C)` by cosine distance; the vectors themselves where there are fewer.

    A centre is the mean of its members as they are, not of unit length; one that loses all gets a vector by chance.
    """
    if len(x) < clusters:
        return x
    centres = x[torch.from_numpy(draws.choice(len(x), clusters, replace=False)).to(x.device)]
    rows = F.normalize(x, dim=1)
    for _ in range(MAX_ROUNDS):
        member = F.one_hot((rows @ F.normalize(centres, dim=1).T).argmax(1), clusters).to(x)  # (n, clusters)
        count = member.sum(0)
        moved = member.T @ x / count.clamp(min=1).unsqueeze(1)
        for empty in (count == 0).nonzero().flatten().tolist():
            moved[empty] = x[int(torch.randint(len(x), (1,), generator=spare))]
        move = (moved - centres).norm(dim=1).sum()
        centres = moved
        if move**2 < TOLERANCE:
            break
    return centres


def gram(x: Tensor) -> Tensor:
    """Mean outer product `(C, C)` of the unit vectors of `(n, C)`; 0 of none."""
    rows = F.normalize(x, dim=1)
    return rows.T @ rows / max(len(x), 1)


def gram_map(query: Tensor, matrix: Tensor) -> Tensor:
    """q^T G q of every position of `(C, h, w)`, as it is, brought to [0, 1] over the image, `(h, w)`."""
    value = torch.einsum("chw,cd,dhw->hw", query, matrix, query)
    return (value - value.min()) / (value.max() - value.min() + 1e-8)


def class_scores(query: Tensor, state: ClassModel, size: tuple[int, int]) -> Tensor:
    """Scores `(classes, *size)` of a query `(C, h, w)`; NOT_SHOWN for a class without a vector."""
    unit, scores = F.normalize(query, dim=0), []
    for prototypes, count, matrix in zip(*state, strict=True):
        if not count:
            scores.append(query.new_full(size, NOT_SHOWN))
            continue
        cosines = torch.einsum("kc,chw->khw", F.normalize(prototypes[: int(count)], dim=1), unit)
        maps = enlarge(torch.cat([cosines, gram_map(query, matrix)[None]])[None], size)[0]
        scores.append(maps.amax(0) * maps.mean(0))
    return torch.stack(scores)

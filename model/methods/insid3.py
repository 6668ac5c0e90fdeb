"""INSID3 (CVPR 2026, arXiv 2603.28480): a query's own clusters, chosen by their likeness to the support's object."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.methods.method import Explanation, Features, Method, Role, Scores
from model.parts.base_learner import BaseLearner
from model.parts.maps import coarse_mask, enlarge, image_size, unit
from util.config import Config
from util.image import MEAN, STD

CANDIDATE_QUANTILE = 0.9  # where nothing of the query has a positive cosine
MAX_COMPONENTS = 500  # of position, as published for the 1024 channels of DINOv3's ViT-L


class Candidates(NamedTuple):
    """Positions of the query that may be the object, each (h, w)."""

    chosen: Tensor  # bool: alike in both directions
    forward: Tensor  # cosine with the prototype
    votes: Tensor  # shots whose object holds the nearest support position


class Clusters(NamedTuple):
    """The query's clusters, numbered from 0, and the numbers by which they are chosen, each (clusters)."""

    labels: Tensor  # (h, w)
    seed: int  # the cluster most like the prototype
    cross: Tensor  # mean cosine with the prototype
    intra: Tensor  # cosine with the seed
    area: Tensor  # share of candidates, 1 for the seed

    @property
    def combined(self) -> Tensor:
        """Product of the three."""
        return self.cross * self.intra * self.area


class INSID3(Method):
    """Segments by the frozen last level alone; meant for DINOv3's vision transformers.

    Args: backbone and the name of that level; how many components of position are removed from it, 0 for none; `tau`,
    the mean cosine down to which clusters are merged; `threshold` of the product that lets a cluster join.
    """

    uses_base_learner = False

    def __init__(self, backbone: Backbone, level: str, components: int, tau: float, threshold: float) -> None:
        super().__init__(backbone, (level,))
        self.level, self.components, self.tau, self.threshold = level, components, tau, threshold
        self.bases: dict[tuple[int, int, torch.device], Tensor] = {}  # of position, by a map's size and device

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "INSID3":
        """As in Method."""
        level = backbone.levels[-1]
        components = min(MAX_COMPONENTS, int(cfg.insid3_components * backbone.channels((level,))[0]))
        return cls(backbone, level, components, cfg.insid3_tau, cfg.insid3_threshold)

    @torch.no_grad()
    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method: unit vectors `(B, C, h, w)` as they are and without what only tells positions apart."""
        whole = unit(maps[self.level].float())
        if not self.components:
            return {"whole": whole, "debiased": whole}
        return {"whole": whole, "debiased": debias(whole, self._basis(whole))}

    def support_state(self, support: Features, masks: Tensor) -> dict[str, Tensor]:
        """Debiased maps `(B, K, C, h, w)`, coarse masks `(B, K, h, w)` and prototypes `(B, C)`."""
        debiased = support["debiased"].unflatten(0, masks.shape[:2])
        size = debiased.shape[-2:]
        coarse = torch.stack([coarse_mask(mask, size) for mask in masks.flatten(0, 1)]).unflatten(0, masks.shape[:2])
        prototypes = [support_prototype(*pair) for pair in zip(debiased, coarse, strict=True)]
        return {"debiased": debiased, "mask": coarse, "prototype": torch.stack(prototypes)}

    @torch.no_grad()
    def score(self, query: Features, state: dict[str, Tensor], episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the images' size: the chosen clusters, enlarged, of which more than a half is the object."""
        weight = torch.stack([self._weights(query, state, number)[1] for number in range(len(query["whole"]))])
        return self._scores((weight > self.threshold).float().unsqueeze(1))

    def explain(self, query: Features, state: dict[str, Tensor]) -> Explanation:
        """As in Method: cosine with the prototype, candidates, and the product by which clusters are chosen."""
        found = [self._weights(query, state, number) for number in range(len(query["whole"]))]
        weight = torch.stack([each[1] for each in found])
        maps = {
            "weight of the cluster": weight,
            "candidates": torch.stack([each[0].chosen.float() for each in found]),
            "cosine with the prototype": torch.stack([each[0].forward for each in found]),
        }
        return Explanation(self._scores((weight > self.threshold).float().unsqueeze(1)), maps)

    def _weights(self, query: Features, state: dict[str, Tensor], number: int) -> tuple[Candidates, Tensor]:
        """One query's candidates and its clusters' products, (h, w)."""
        whole, debiased = query["whole"][number], query["debiased"][number]
        prototype = state["prototype"][number]
        candidates = find_candidates(debiased, prototype, state["debiased"][number], state["mask"][number])
        if not candidates.chosen.any():
            return candidates, torch.zeros_like(candidates.forward)
        clusters = weigh_clusters(cluster(whole, self.tau), whole, debiased, prototype, candidates.chosen)
        return candidates, clusters.combined[clusters.labels]

    def _scores(self, mask: Tensor) -> Scores:
        size = image_size(self.backbone, self.level, mask.shape[-2:])
        foreground = enlarge(mask, size)
        final = torch.cat([1 - foreground, foreground], dim=1)
        return Scores(final, final)

    def _basis(self, whole: Tensor) -> Tensor:
        """Of position for maps of this size, from an image without content, black before it is normalised."""
        height, width = whole.shape[-2:]
        key = height, width, whole.device
        if key not in self.bases:
            size = image_size(self.backbone, self.level, whole.shape[-2:])
            black = torch.from_numpy(-MEAN / STD).to(whole)[None, :, None, None].expand(1, 3, *size)
            self.bases[key] = position_basis(self.backbone(black, (self.level,))[self.level][0], self.components)
        return self.bases[key]


def position_basis(empty: Tensor, components: int) -> Tensor:
    """Orthonormal directions `(C, n)` along which an image without content, `(C, h, w)`, varies with position.

    n is `components`, at most C and h * w; ValueError where nothing would be left of a map.
    """
    if components >= len(empty):
        raise ValueError(f"{components} components leave nothing of {len(empty)} channels")
    rows = unit(empty.float()).flatten(1)  # (C, h * w)
    return torch.linalg.svd(rows - rows.mean(1, keepdim=True), full_matrices=False).U[:, :components]


def debias(whole: Tensor, basis: Tensor) -> Tensor:
    """Unit vectors `(..., C, h, w)` without their part in the basis `(C, n)`, of length one again."""
    rows = whole.flatten(-2)  # (..., C, h * w)
    return unit((rows - basis @ (basis.T @ rows)).unflatten(-1, whole.shape[-2:]))


def support_prototype(debiased: Tensor, mask: Tensor) -> Tensor:
    """Unit prototype (C) of maps `(K, C, h, w)` under masks `(K, h, w)`: mean of the shots' means; 0 without object."""
    count = mask.flatten(1).sum(1)  # (K)
    means = torch.einsum("kchw,khw->kc", debiased, mask.to(debiased)) / count.clamp(min=1).unsqueeze(1)
    return F.normalize(means[count > 0].sum(0), dim=0)


def find_candidates(debiased: Tensor, prototype: Tensor, support: Tensor, masks: Tensor) -> Candidates:
    """Query positions like the prototype whose nearest support positions lie in the object.

    Args: debiased query `(C, h, w)`, prototype `(C)`, debiased support `(K, C, h', w')`, its masks `(K, h', w')`.
    """
    forward = torch.einsum("chw,c->hw", debiased, prototype)
    alike = forward > 0
    if not alike.any():
        alike = forward > torch.quantile(forward, CANDIDATE_QUANTILE)
    rows = debiased.flatten(1).T  # (h * w, C)
    nearest = torch.stack([(rows @ shot.flatten(1)).argmax(1) for shot in support])  # (K, h * w), first of equals
    votes = masks.flatten(1).gather(1, nearest).sum(0).view_as(forward)
    return Candidates(alike & (votes >= math.ceil(len(support) / 2)), forward, votes)


def cluster(whole: Tensor, tau: float) -> Tensor:
    """Clusters `(h, w)`, numbered from 0, of unit vectors `(C, h, w)`, merged while their mean cosine exceeds tau."""
    rows = whole.flatten(1).T
    distance = (1 - (rows @ rows.T).clamp(-1, 1)).double().cpu().numpy()
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average")
    labels = fcluster(tree, np.nextafter(1 - tau, 0), criterion="distance") - 1
    return torch.from_numpy(labels.astype(np.int64)).view(whole.shape[-2:]).to(whole.device)


def weigh_clusters(labels: Tensor, whole: Tensor, debiased: Tensor, prototype: Tensor, candidates: Tensor) -> Clusters:
    """The clusters' seed and numbers; `candidates (h, w)`, bool, with at least one true."""
    member = F.one_hot(labels.flatten()).T.to(whole)  # (clusters, h * w)
    count = member.sum(1)
    own = F.normalize(member @ whole.flatten(1).T, dim=1)  # prototypes of clusters, (clusters, C)
    other = F.normalize(member @ debiased.flatten(1).T, dim=1)
    area = member @ candidates.flatten().to(whole) / count
    seed = int((other @ prototype).masked_fill(area == 0, -torch.inf).argmax())
    cross = member @ torch.einsum("chw,c->hw", debiased, prototype).flatten() / count
    area[seed] = 1
    return Clusters(labels, seed, cross, own @ own[seed], area)

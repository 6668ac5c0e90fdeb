"""PFENet: a prior from the last stage, and features of query and support that meet at several scales.

Source: "Prior Guided Feature Enrichment Network for Few-Shot Segmentation", TPAMI 2020 (arXiv 2008.01449).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from model.backbone.base import Backbone
from model.loss import cross_entropy
from model.methods.method import MEAN_PADDING, Explanation, Features, Method, Role, Scores, State, support_batch
from model.parts.base_learner import BaseLearner
from model.parts.decoder import classifier, refinement
from model.parts.prior import foreground, masked_average, masked_stage4, max_cosine_prior, with_stage4
from model.parts.reduction import concat_maps, reduction
from model.released import FROZEN, NameTable
from model.resize import resize
from model.tensors import tree_map
from util.config import Config
from util.image import ImageRule


class Scale(nn.Module):
    """Query, prototype and prior at one scale, enriched by the scale before, unless it is the first."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        self.merge = nn.Conv2d(2 * width + 1, width, 1, bias=False)
        self.enrich = None if first else nn.Conv2d(2 * width, width, 1, bias=False)
        self.refine, self.classifier = refinement(width), classifier(width)

    def forward(self, q: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """`q (B, 2 C + 1, b, b)`, the map before `(B, C, f, f)` to a map `(B, C, b, b)` and logits `(B, 2, b, b)`."""
        x = F.relu(self.merge(q))
        if self.enrich is not None and before is not None:
            x = x + F.relu(self.enrich(concat_maps(x, before)))
        x = x + self.refine(x)
        return x, self.classifier(x)


class PFENet(Method):
    """Segments what the support's prototype and prior mask have in common with the query at several scales.

    Args: backbone whose stage 4 can be run alone; scales, which are sides of maps, or up to 1 their share of f3's side;
    weight of the scales' own losses; width C.

    Features: `f2` and `f3`, and of queries `f4`. Embedded: `reduced` instead of f2, and of queries without f3.
    State: `prototype` (B, C); by shot `f4` (B, K, C4, h, w) and `mask` (B, K, 1, h, w).
    """

    uses_base_learner = False
    images = ImageRule(fit="padded")  # black (quirk)
    corrections = MEAN_PADDING | {
        "frozen_statistics": "the backbone's batch norms stay as they are; in training they normalise by the batch",
        "scales_within_map": "no scale is finer than the features, whose cells it would repeat",
    }
    released_names: ClassVar[NameTable] = (
        *FROZEN,
        (r"reduce_query", r"down_query"),
        (r"reduce_support", r"down_supp"),
        (r"scales\.(\d+)\.merge", r"init_merge.\1.0"),
        (r"scales\.(\d+)\.enrich", lambda m: f"alpha_conv.{int(m[1]) - 1}.0"),
        (r"scales\.(\d+)\.refine", r"beta_conv.\1"),
        (r"scales\.(\d+)\.classifier", r"inner_cls.\1"),
        (r"merge", r"res1.0"),
        (r"refine", r"res2"),
        (r"classifier", r"cls"),
    )
    features_by_role = True

    def __init__(
        self, backbone: Backbone, scales: Sequence[float], inner_weight: float = 1.0, width: int = 256
    ) -> None:
        super().__init__(with_stage4(backbone, "PFENet"), backbone.levels)
        self.sides, self.inner_weight = tuple(scales), inner_weight
        channels = sum(backbone.channels(self.maps[:2]))
        self.reduce_query, self.reduce_support = reduction(channels, width), reduction(channels, width)
        self.scales = nn.ModuleList(Scale(width, first=index == 0) for index in range(len(scales)))
        self.merge = nn.Conv2d(len(scales) * width, width, 1, bias=False)
        self.refine, self.classifier = refinement(width), classifier(width)

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "PFENet":
        """As in Method."""
        return cls(backbone, cfg.ppm_scales, cfg.aux_weight, cfg.width)

    def train(self, mode: bool = True) -> Self:
        """As in Method, but for the backbone's batch norms (quirk)."""
        super().train(mode)
        self.backbone.train(mode and "frozen_statistics" not in self.corrected)
        return self

    def maps_in(self, role: Role) -> tuple[str, ...]:
        """A support's stage 4 waits for its mask."""
        return self.maps if role == "query" else self.maps[:2]

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method."""
        features = dict(zip(("f2", "f3"), (maps[name] for name in self.maps[:2]), strict=True))
        return features | {"f4": maps[self.maps[2]]} if role == "query" else features

    def _features_of_episodes(self, query: Any, support: Any) -> tuple[Features, Features]:
        """As in Method; shot by shot in training, where batch norms see each shot of all episodes as one batch."""
        if not self.backbone.training:
            return super()._features_of_episodes(query, support)
        queries = self.features(query, "query")
        shots = range(support_batch(support).shape[1])
        found = [self.features(tree_map(lambda x, k=k: x[:, k], support), "support") for k in shots]
        return queries, tree_map(lambda *maps: torch.stack(maps, dim=1).flatten(0, 1), *found)

    def embed(self, features: Features, role: Role) -> Features:
        """As in Method."""
        reduce, kept = (self.reduce_query, "f4") if role == "query" else (self.reduce_support, "f3")
        return {"reduced": reduce(concat_maps(features["f3"], features["f2"])), kept: features[kept]}

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in Method; prototypes are averaged over the shots."""
        reduced, f3 = (support[key].unflatten(0, masks.shape[:2]) for key in ("reduced", "f3"))
        prototype = masked_average(reduced, foreground(masks, f3.shape[-2:], reduced.dtype)).mean(1)
        return {"prototype": prototype, **masked_stage4(self.backbone, f3, masks)}

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the size of f3; `auxiliary` are the scales' logits."""
        q = query["reduced"]
        prior = self.prior(query, state)
        inner, finished = [], list[Tensor]()
        for side, scale in zip(self.sides, self.scales, strict=True):
            b = max(int(q.shape[-1] * side), 1) if side <= 1 else int(side)
            b = min(b, q.shape[-1]) if "scales_within_map" in self.corrected else b
            pooled = F.adaptive_avg_pool2d(q, b)  # where b exceeds f, cells are repeated (quirk)
            prototype = state["prototype"][..., None, None].expand_as(pooled)
            x, logits = scale(concat_maps(pooled, prototype, prior), finished[-1] if finished else None)
            finished.append(resize(x, q.shape[-2:]))
            inner.append(logits)
        z = F.relu(self.merge(torch.cat(finished, dim=1)))
        logits = self.classifier(z + self.refine(z))
        return Scores(logits, logits, auxiliary=tuple(inner))

    def prior(self, query: Features, state: State) -> Tensor:
        """The prior mask, averaged over the shots, `(B, 1, f, f)`."""
        prior = max_cosine_prior(query["f4"], state["f4"], state["mask"])
        return resize(prior, query["reduced"].shape[-2:]).mean(1, keepdim=True)

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """As in Method: of the result, and the mean over the scales."""
        inner = [cross_entropy(resize(logits, truth.shape[-2:]), truth) for logits in scores.auxiliary]
        return {"main": cross_entropy(scores.final, truth), "inner": self.inner_weight * torch.stack(inner).mean()}

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """One group a module, in the published order."""
        scales = [
            [getattr(scale, name) for scale in self.scales] for name in ("merge", "enrich", "refine", "classifier")
        ]
        modules = [[self.reduce_query], [self.reduce_support], *scales, [self.merge], [self.refine], [self.classifier]]
        groups = [[p for module in group if module is not None for p in module.parameters()] for group in modules]
        return [group for group in groups if group]

    def explain(self, query: Features, state: State) -> Explanation:
        """Scores with the prior and every scale's probability."""
        scores = self.score(query, state)
        maps = {f"probability at {x.shape[-1]} cells a side": x.softmax(1)[:, 1] for x in scores.auxiliary}
        prior = self.prior(query, state).squeeze(1)
        return Explanation(scores, {"prior: like the object": prior, **maps})

"""BAM: a meta learner and a base learner that knows the base classes, with an ensemble of both.

Source: "Learning What Not to Segment", CVPR 2022 (arXiv 2203.07615).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.backbone.base import Backbone
from model.loss import ensemble_losses
from model.methods.method import MEAN_PADDING, STEADY_BASE_LEARNER, Explanation, Features, Method, Role, Scores, State
from model.parts.base_learner import BaseLearner
from model.parts.decoder import Decoder
from model.parts.ensemble import Ensemble, base_map, gram, scene_difference
from model.parts.prior import foreground, masked_average, masked_stage4, max_cosine_prior, with_stage4
from model.parts.reduction import concat_maps, reduction
from model.released import DECODER, ENSEMBLE, FROZEN, NameTable
from model.resize import resize
from util.config import Config
from util.image import ImageRule


class BAM(Method):
    """Segments what is like the support's object and no base class.

    Args: backbone whose stage 4 can be run alone; base learner; ensemble; width C.

    Features: `f2`, `f3`, `gram`, and of queries `f4` and `f5`, the base learner's. Embedded: `reduced` instead of f2,
    and of queries without f3. State, all by shot: `prototype` (B, K, C), `f4` (B, K, C4, h, w), `mask`
    (B, K, 1, h, w), `gram` (B, K, C2, C2).
    """

    uses_base_learner = True
    images = ImageRule(fit="padded")  # black (quirk)
    corrections = MEAN_PADDING | STEADY_BASE_LEARNER
    released_names: ClassVar[NameTable] = (
        (r"base_learner\.ppm", r"learner_base.0"),
        (r"base_learner\.conv", r"learner_base.1.0"),
        (r"base_learner\.bn", r"learner_base.1.1"),
        (r"base_learner\.classifier", r"learner_base.1.4"),
        *FROZEN,
        (r"reduce_query", r"down_query"),
        (r"reduce_support", r"down_supp"),
        (r"merge", r"init_merge.0"),
        *DECODER,
        *ENSEMBLE,
    )
    features_by_role = True
    base_learner: BaseLearner

    def __init__(self, backbone: Backbone, base_learner: BaseLearner, ensemble: Ensemble, width: int = 256) -> None:
        super().__init__(with_stage4(backbone, "BAM"), backbone.levels, base_learner, ensemble.shot)
        channels = sum(backbone.channels(self.maps[:2]))
        self.reduce_query, self.reduce_support = reduction(channels, width), reduction(channels, width)
        self.merge = nn.Conv2d(2 * width + 1, width, 1, bias=False)
        self.decoder, self.ensemble = Decoder(width), ensemble

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "BAM":
        """As in Method."""
        assert base_learner is not None, "has_base_learner"
        # The weights over shots go back to their own shots, whatever kshot_unsort says: so do the published ones.
        ensemble = Ensemble(cfg.trained_shot or cfg.shot, cfg.kshot_trans_dim, unsort=True)
        return cls(backbone, base_learner, ensemble, cfg.width)

    def maps_in(self, role: Role) -> tuple[str, ...]:
        """A support's stage 4 waits for its mask."""
        return self.maps if role == "query" else self.maps[:2]

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method."""
        f3 = maps[self.maps[1]]
        f2 = resize(maps[self.maps[0]], f3.shape[-2:])
        features = {"f2": f2, "f3": f3, "gram": gram(f2)}
        if role == "query":
            f4 = maps[self.maps[2]]
            features |= {"f4": f4, "f5": self.base_learner.features(f4)}
        return features

    def embed(self, features: Features, role: Role) -> Features:
        """As in Method."""
        reduce, unused = (self.reduce_query, ("f2", "f3")) if role == "query" else (self.reduce_support, ("f2",))
        others = {name: x for name, x in features.items() if name not in unused}
        return {"reduced": reduce(concat_maps(features["f3"], features["f2"])), **others}  # f3 first (quirk)

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in Method; weights over K shots take exactly so many: the shots repeated, or the first."""
        chosen = self.ensemble.chosen(masks.shape[1])
        reduced, f3, grams = (
            support[name].unflatten(0, masks.shape[:2])[:, chosen] for name in ("reduced", "f3", "gram")
        )
        masks = masks[:, chosen]
        prototype = masked_average(reduced, foreground(masks, f3.shape[-2:], reduced.dtype))
        return {"prototype": prototype, "gram": grams, **masked_stage4(self.backbone, f3, masks)}

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the size of f3."""
        difference = scene_difference(query["gram"], state["gram"])
        weights = self.ensemble.weights(difference)  # (B, K)
        q = query["reduced"]
        prototype = (weights.unsqueeze(2) * state["prototype"]).sum(1)[..., None, None].expand_as(q)
        x = self.merge(torch.cat([q, prototype, self.prior(query, state, weights)], dim=1))
        meta = self.decoder(x)
        with torch.no_grad():
            base = self.base_learner.classify(query["f5"])
            known = base_map(resize(base, meta.shape[-2:]), episode_class)
        return Scores(meta, self.ensemble(meta, known, difference), base)

    def prior(self, query: Features, state: State, weights: Tensor) -> Tensor:
        """The prior mask `(B, 1, f, f)` under the weights over shots `(B, K)`."""
        prior = resize(max_cosine_prior(query["f4"], state["f4"], state["mask"]), query["reduced"].shape[-2:])
        return (weights[..., None, None] * prior).sum(1, keepdim=True)

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """As in Method."""
        return ensemble_losses(scores, truth, base_truth)

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """One group a module, in the published order."""
        modules = [self.reduce_query, self.reduce_support, self.merge, *self.decoder.children()]
        shots = [self.ensemble.shot_weights] if self.ensemble.shot_weights else []
        modules += [self.ensemble.gram_merge, self.ensemble.base_merge, *shots]
        return [list(module.parameters()) for module in modules]

    def explain(self, query: Features, state: State) -> Explanation:
        """Scores with the prior, and the meta and base learners' probabilities."""
        scores = self.score(query, state)
        weights = self.ensemble.weights(scene_difference(query["gram"], state["gram"]))
        prior = self.prior(query, state, weights).squeeze(1)
        return Explanation(scores, {"prior: like the object": prior, **scores.probabilities()})

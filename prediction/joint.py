"""A training-free method and a network that segment together where there are few masks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.inference import MEGABYTE
from model.methods.method import Explanation, Features, Method, Role, Scores, State
from model.parts.base_learner import BaseLearner
from model.tensors import tree_map
from prediction.outlines import SURE
from prediction.predictor import Predictor
from prediction.support import SupportClass
from util.config import Config

FEW = 2  # masks of a class, up to which the network counts
CELLS = 20  # each way, to which a margin is averaged to be without the detail that a network of small images lacks


class Joint(Method):
    """The mean of two methods' margins with at most FEW masks, but the first one's detail; with more, the first one's.

    Where the first finds nothing, nothing is found: a network of few classes finds something nearly everywhere.

    Args: a training-free method; a trained network, which sees the first one's images reduced; its images' side. Both
    must pad images.
    """

    learns_from_others = True

    def __init__(self, first: Method, second: Method, side: int) -> None:
        super().__init__(first.backbone, first.maps)
        self.first, self.second, self.side = first, second, side
        self.images = first.images

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "Joint":
        """Two methods make it; no configuration does."""
        raise TypeError("a joint method is made of two methods, not of a configuration")

    @torch.no_grad()
    def features(self, images: Tensor | Mapping[str, Tensor], role: Role) -> Features:
        """As in Method: those of both."""
        assert isinstance(images, Tensor)
        small = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        return {"first": self.first.features(images, role), "second": self.second.features(small, role)}

    def embed(self, features: Features, role: Role) -> Features:
        """As in Method."""
        return {name: getattr(self, name).embed(part, role) for name, part in features.items()}

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in Method; the network sees the supports of the class alone."""
        first = self.first.support_state(support["first"], masks)
        own = (masks == 1).any(3).any(2).any(0).nonzero().flatten()
        if len(own) > FEW:
            return {"first": first}
        shots = masks.shape[:2]
        chosen = tree_map(lambda x: x.unflatten(0, shots)[:, own].flatten(0, 1), support["second"])
        return {"first": first, "second": self.second.support_state(chosen, masks[:, own])}

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the first one's size."""
        return self._with_second(self.first.score(query["first"], state["first"]), query, state)

    def explain(self, query: Features, state: State) -> Explanation:
        """As in Method: the first one's maps, and the network's after them."""
        first = self.first.explain(query["first"], state["first"])
        maps = first.maps
        if "second" in state:
            maps = maps | self.second.explain(query["second"], state["second"]).maps
        return Explanation(self._with_second(first.scores, query, state), maps)

    def _with_second(self, first: Scores, query: Features, state: State) -> Scores:
        if "second" not in state:
            return first
        size, second = first.final.shape[-2:], self.second.score(query["second"], state["second"])
        margin = first.margin_at(size).clamp(-SURE, SURE)  # (B, h, w)
        coarse = F.interpolate(F.adaptive_avg_pool2d(margin, CELLS)[None], size, mode="bilinear")[0]
        both = margin + (second.margin_at(self.side, size).clamp(-SURE, SURE) - coarse) / 2
        half = torch.where((margin > 0).flatten(1).any(1)[:, None, None], both, margin).unsqueeze(1) / 2
        final = torch.cat([-half, half], dim=1)
        return Scores(final, final)


def has_few(support: Sequence[SupportClass]) -> bool:
    """Whether a class has so few masks that the network counts."""
    return min(len(item.images) for item in support) <= FEW


def needed(predictor: Predictor, support: Sequence[SupportClass]) -> Predictor:
    """A predictor of the first method alone where no class has few masks, else the same one."""
    if not isinstance(predictor.model, Joint) or has_few(support):
        return predictor
    return Predictor(
        predictor.model.first, predictor.size, predictor.shot, predictor.device, predictor.amp, 0, predictor.sharpens
    )


def together(first: Predictor, second: Predictor) -> Predictor:
    """A predictor of both their methods, otherwise as the first one."""
    method = Joint(first.model, second.model, second.size)
    megabytes = first.cache.budget / MEGABYTE
    return Predictor(method, first.size, first.shot, first.device, first.amp, megabytes, first.sharpens)

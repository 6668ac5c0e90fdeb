"""What a method of few-shot segmentation is to the rest of the tree."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from model.backbone import Backbone
from model.optim import ScheduledOptimizer, make_sgd
from model.parts.base_learner import BaseLearner
from model.parts.ensemble import base_map
from model.released import FROZEN, NameTable
from model.resize import resize
from model.tensors import tree_map
from util.config import Config
from util.errors import UserError
from util.image import ImageRule

Role = Literal["query", "support"]
Features = dict[str, Any]  # tensors by name, each (B, ...), of images
IMAGE_CORRECTIONS: dict[str, dict[str, Any]] = {  # those that change how images get to a method
    "mean_padding": {"padding": "mean"},
    "cropped_images": {"augment": "crop"},
}
MEAN_PADDING = {"mean_padding": "padding of images has ImageNet's mean colour, as in training; it is black"}
STEADY_BASE_LEARNER = {"steady_base_learner": "the frozen base learner is trained on without its dropout, which works"}
IGNORED_PIXELS = {"ignored_pixels": "255 counts for nothing in the loss, where it is background"}
State = Any  # a tree of tensors (model/tensors.py), each (B, ...): all that a query needs of its supports


class Scores(NamedTuple):
    """Of every position, background first; `final` is what is predicted, at the method's own size or at the masks'."""

    meta: Tensor  # (B, 2, h, w), logits before the base learner adjusts them
    final: Tensor  # (B, 2, h, w); as adjusted, or the same tensor without a base learner
    base: Tensor | None = None  # (B, 1 + base classes, f, f), the base learner's logits at its own size
    auxiliary: tuple[Tensor, ...] = ()  # what else the losses need, at sizes of their own

    def resize(self, size: Any) -> "Scores":
        """`meta` and `final` at another size, one number or (height, width)."""
        meta = resize(self.meta, size)
        return self._replace(meta=meta, final=meta if self.final is self.meta else resize(self.final, size))

    def item(self, number: int) -> "Scores":
        """The scores of one sample of the batch, B = 1."""
        return tree_map(lambda x: x[number : number + 1], self)

    def at(self, *sizes: Any) -> Tensor:
        """`final` resized to one size after the other, (B, 2, *last size); the larger channel is predicted."""
        return _resized(self.final, sizes)

    def margin_at(self, *sizes: Any) -> Tensor:
        """How far the foreground is above the background at the last size, (B, *last size)."""
        return _resized(self.final[:, 1:] - self.final[:, :1], sizes).squeeze(1)

    def probabilities(self) -> dict[str, Tensor]:
        """Of foreground before and after the ensemble, and of any base class, by a caption each, (B, h, w)."""
        maps = {"probability before the ensemble (meta)": self.meta.softmax(1)[:, 1]}
        if self.base is not None:
            maps["probability of any base class"] = base_map(self.base)[:, 0]
            maps["probability after the ensemble"] = self.final.softmax(1)[:, 1]
        return maps


class Explanation(NamedTuple):
    """Scores, and the maps behind them by a caption each, (B, h, w)."""

    scores: Scores
    maps: dict[str, Tensor]


class Method(nn.Module, ABC):
    """Segments in queries the class that a few support masks show; a subclass is a whole method, in one file.

    Args: frozen backbone; the names of the maps that it takes; frozen base learner, if it has one; the number of shots
    that its weights are bound to, None for any.
    """

    images: ImageRule = ImageRule()
    uses_base_learner: ClassVar[bool | None] = None  # None: as `ensemble` says
    learns_from_others: ClassVar[bool] = False  # whether the objects of other supports show it what background is
    released_names: ClassVar[NameTable] = FROZEN  # of its tensors in published checkpoints
    flattened_names: ClassVar[tuple[str, ...]] = ()  # endings of tensors whose first two dimensions are one there
    unused_names: ClassVar[tuple[str, ...]] = ()  # beginnings of names there of tensors that it has no use for
    features_by_role: ClassVar[bool] = False  # whether a support's frozen features are others than a query's
    item_means: Collection[str] = ()  # losses that are means over the batch's items, not over its pixels
    corrections: ClassVar[Mapping[str, str]] = {}  # what can be done instead of the published code's quirks, by name
    corrected: Collection[str] = ()  # those of them that are done

    def __init__(
        self,
        backbone: Backbone,
        maps: tuple[str, ...],
        base_learner: BaseLearner | None = None,
        shot: int | None = None,
    ) -> None:
        super().__init__()
        self.maps, self.shot = maps, shot
        self.backbone = backbone.requires_grad_(False)
        self.base_learner = base_learner and base_learner.requires_grad_(False)

    @classmethod
    @abstractmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> Self:
        """The method of a configuration, from these parts and those that it makes itself."""

    @classmethod
    def configured(cls, cfg: Config) -> Config:
        """The configuration with the keys that the method settles itself, such as the kind of its backbone."""
        return cfg

    @classmethod
    def has_base_learner(cls, cfg: Config) -> bool:
        """Whether it is built with a base learner."""
        return cfg.ensemble if cls.uses_base_learner is None else cls.uses_base_learner

    def correct(self, names: Collection[str]) -> None:
        """Do without quirks of the published code, by names of `corrections`; UserError for any other name."""
        if unknown := sorted({*names} - self.corrections.keys()):
            known = ", ".join(self.corrections) or "there are none"
            raise UserError(f"corrections: {unknown[0]!r} is none of {type(self).__name__}'s; choose of: {known}")
        self.corrected = frozenset(names)
        self.item_means = () if IGNORED_PIXELS.keys() & self.corrected else self.item_means
        for name in names:
            self.images = self.images._replace(**IMAGE_CORRECTIONS.get(name, {}))

    @torch.no_grad()
    def features(self, images: Tensor | Mapping[str, Tensor], role: Role) -> Features:
        """What can be kept of images `(B, 3, H, W)` without their masks; the backbone's `maps` may stand for them."""
        if not isinstance(images, Tensor):
            return self.derive(images, role)
        names = self.maps_in(role)
        return self.derive(self.backbone(images.contiguous(memory_format=torch.channels_last), names), role)

    def maps_in(self, role: Role) -> tuple[str, ...]:
        """The names of the maps that an image is needed for in one role; by default all."""
        return self.maps

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """Frozen features of the backbone's maps; by default these themselves."""
        return dict(maps)

    def embed(self, features: Features, role: Role) -> Features:
        """Features as the learnt part takes them in one role; by default as they are."""
        return features

    @abstractmethod
    def support_state(self, support: Features, masks: Tensor) -> State:
        """All that queries need of embedded supports `(B * K, ...)`.

        Of `masks (B, K, H, W)` only the value 1 is foreground. Tensors of the state begin with B, so that one support
        set can be shared among queries (`model.tensors.expand`).
        """

    @abstractmethod
    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """Scores of embedded queries at the method's own size.

        `episode_class (B,)`, given in training, is the 0-based position of the episode's class among the base classes,
        which the base learner's map leaves out.
        """

    def forward(
        self,
        query: Tensor | Mapping[str, Tensor],
        support: Tensor | Mapping[str, Tensor],
        support_mask: Tensor,
        episode_class: Tensor | None = None,
    ) -> Scores:
        """Scores of queries at the size of the masks.

        Args: query `(B, 3, H, W)`, normalised; support `(B, K, 3, H, W)`; or the backbone's maps by name in place of
        both; support_mask `(B, K, H, W)`, of which only the value 1 is foreground; episode_class as in `score`.
        """
        queries, supports = self._features_of_episodes(query, support)
        state = self.support_state(self.embed(supports, "support"), support_mask)
        return self.score(self.embed(queries, "query"), state, episode_class).resize(support_mask.shape[-2:])

    def _features_of_episodes(self, query: Any, support: Any) -> tuple[Features, Features]:
        """Features of B queries and of B * K supports, in one pass through the backbone where both are made alike."""
        if self.features_by_role:
            supports = tree_map(lambda x: x.flatten(0, 1), support)
            return self.features(query, "query"), self.features(supports, "support")
        images = tree_map(lambda q, s: torch.cat([q.unsqueeze(1), s], dim=1), query, support)  # (B, 1 + K, ...)
        found = self.features(tree_map(lambda x: x.flatten(0, 1), images), "query")
        grouped = tree_map(lambda x: x.unflatten(0, (len(support_batch(support)), -1)), found)
        return tree_map(lambda x: x[:, 0], grouped), tree_map(lambda x: x[:, 1:].flatten(0, 1), grouped)

    def encode_support(self, support: Tensor, support_mask: Tensor) -> State:
        """Everything that depends on the support only: support `(B, K, 3, H, W)`, support_mask `(B, K, H, W)`."""
        features = self.features(support.flatten(0, 1), "support")
        return self.support_state(self.embed(features, "support"), support_mask)

    def embed_query(self, query: Tensor) -> Features:
        """Queries `(B, 3, H, W)` as `score` takes them."""
        return self.embed(self.features(query, "query"), "query")

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """Losses by name, whose sum is minimised, of scores at the size of `truth (B, H, W)` in {0, 1, 255}.

        `base_truth (B, H, W)`, where it is known: base classes from 1 in ascending order, all else 0, 255 ignored.
        """
        raise TypeError(f"{type(self).__name__} is not trained")

    @property
    def is_trained(self) -> bool:
        """Whether it has anything to learn: a training-free method needs no checkpoint."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Parameters that train, in the optimiser's groups; by default all in one."""
        return [[parameter for parameter in self.parameters() if parameter.requires_grad]]

    def optimizers(self, cfg: Config) -> dict[str, ScheduledOptimizer]:
        """The optimisers by name; by default SGD of all groups with a polynomial rate."""
        sgd = make_sgd(self.parameter_groups(), cfg.momentum, cfg.weight_decay)
        return {"all": ScheduledOptimizer(sgd, cfg.base_lr, cfg.power, cfg.index_split)}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the frozen batch norms, which always use their running statistics."""
        super().train(mode)
        self.backbone.eval()
        if self.base_learner:
            # Its dropout is left on in published training (quirk).
            self.base_learner.eval().dropout.train(mode and "steady_base_learner" not in self.corrected)
        return self

    def explain(self, query: Features, state: State) -> Explanation:
        """Scores of embedded queries with maps that led to them, the most telling first; by default the probability."""
        scores = self.score(query, state)
        return Explanation(scores, {"probability": scores.margin_at().sigmoid()})


def _resized(x: Tensor, sizes: Sequence[Any]) -> Tensor:
    """Resized to one size after the other, not in half precision."""
    x = x if x.dtype == torch.float64 else x.float()
    for size in sizes:
        x = resize(x, size)
    return x


def support_batch(support: Any) -> Tensor:
    """One tensor of supports, `(B, K, ...)`, which are one tensor or several by name."""
    return support if isinstance(support, Tensor) else next(iter(support.values()))

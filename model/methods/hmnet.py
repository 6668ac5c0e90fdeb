"""HMNet from images to scores: features -> embed -> trunk -> decode -> ensemble.

Source: "Hybrid Mamba for Few-Shot Segmentation", NeurIPS 2024 (arXiv 2409.19613).
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import Backbone
from model.parts.base_learner import BaseLearner
from model.parts.decoder import Decoder
from model.parts.ensemble import Ensemble, base_map, gram, scene_difference
from model.parts.prior import level_prior, masked_average, prototypes, select_prior
from model.parts.trunk import Memory, Trunk
from model.resize import resize

PRIOR_GAIN = 10  # of the released code; the paper does not mention it
Levels = tuple[Tensor, ...]


class Frozen(NamedTuple):
    """Frozen features of images, in whichever role they will play."""

    mid: Tensor  # stages 2 and 3 concatenated (B, C2 + C3, h, w)
    levels: Levels  # for the prior: f4 (B, C4, h4, w4) and, with the ensemble, f5 (B, 512, h4, w4)
    gram: Tensor | None  # (B, C2, C2), with the ensemble

    def map(self, change: Callable[[Tensor], Tensor]) -> "Frozen":
        """The features with every tensor changed alike."""
        gram = None if self.gram is None else change(self.gram)
        return Frozen(change(self.mid), tuple(change(level) for level in self.levels), gram)


class Embedded(NamedTuple):
    """Features of images embedded as queries or as supports."""

    reduced: Tensor  # stages 2 and 3 at the trunk's width and size (B, C, f, f)
    levels: Levels  # as in Frozen
    gram: Tensor | None  # as in Frozen


class SupportState(NamedTuple):
    """All that the query needs of its supports; independent of the query."""

    prototype: Tensor  # (B, C, 1, 1)
    levels: Levels  # per feature level (B, K, 2, channels): foreground and background prototypes
    gram: Tensor | None  # (B, K, C2, C2)
    memories: list[Memory | None]  # one per trunk block

    def expand(self, batch: int) -> "SupportState":
        """Share one support set, B = 1, among `batch` queries without copying it."""
        return SupportState(
            self.prototype.expand(batch, -1, -1, -1),
            tuple(level.expand(batch, -1, -1, -1) for level in self.levels),
            None if self.gram is None else self.gram.expand(batch, -1, -1, -1),
            [memory and memory.expand(batch) for memory in self.memories],
        )


class Scores(NamedTuple):
    """Of every pixel, background first; `final` is what is predicted, `meta` what the base learner has not adjusted."""

    meta: Tensor  # (B, 2, H, W), logits
    final: Tensor  # (B, 2, H, W); probabilities as adjusted, or the logits without the ensemble

    def resize(self, size: int | Sequence[int]) -> "Scores":
        """The scores at another size."""
        return Scores(resize(self.meta, size), resize(self.final, size))


class Embedding(nn.Module):
    """Query and support embedding (paper, section 4.1). Args: channels of stages 2 and 3 together, and width C."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.query, self.support = _reduction(channels, width), _reduction(channels, width)
        self.merge_query = nn.Conv2d(2 * width + 2, width, 1, bias=False)
        self.merge_support = nn.Conv2d(2 * width + 1, width, 1, bias=False)


class HMNet(nn.Module):
    """Segments in the query the class that the support masks show.

    Args: frozen backbone; frozen base learner, or None for the paper's rows without ensemble; the trunk; width C and
    feature size f; number of shots K with `kshot_trans_dim` and `kshot_unsort` (see `ensemble.ShotWeights`).
    """

    def __init__(
        self,
        backbone: Backbone,
        base_learner: BaseLearner | None,
        trunk: Trunk,
        *,
        width: int = 256,
        feature_size: int = 64,
        shot: int = 1,
        kshot_trans_dim: int = 2,
        kshot_unsort: bool = False,
    ) -> None:
        super().__init__()
        self.feature_size = feature_size
        self.backbone = backbone.requires_grad_(False)
        self.base_learner = base_learner and base_learner.requires_grad_(False)
        self.embedding = Embedding(sum(backbone.channels[:2]), width)
        self.trunk = trunk
        self.decoder = Decoder(width)
        self.merging = Ensemble(shot, kshot_trans_dim, kshot_unsort) if base_learner else None

    def train(self, mode: bool = True) -> "HMNet":
        """Set the mode of all but the frozen batch norms, which always use their running statistics."""
        super().train(mode)
        self.backbone.eval()
        if self.base_learner:
            self.base_learner.eval().dropout.train(mode)
        return self

    def forward(self, query: Tensor, support: Tensor, support_mask: Tensor, left_out: Tensor | None = None) -> Scores:
        """Scores of queries at the size of the masks.

        Args: query `(B, 3, H, W)`, normalised; support `(B, K, 3, H, W)`; or the backbone's maps in place of both (see
        `features`); support_mask `(B, K, H, W)`, of which only the value 1 is foreground; in training left_out `(B,)`,
        the 0-based position of the episode's class among the base classes, which the base map leaves out.
        """
        images = torch.cat([query.unsqueeze(1), support], dim=1)  # (B, 1 + K, 3, H, W): one backbone batch
        queries, supports = _split_roles(self.features(images.flatten(0, 1)), images.shape[1])
        state = self.support_state(self.embed(supports, "support"), support_mask)
        return self.score(self.embed(queries, "query"), state, left_out).resize(support_mask.shape[-2:])

    @torch.no_grad()
    def features(self, images: Tensor) -> Frozen:
        """Frozen features of images `(B, 3, H, W)`, or of the backbone's maps of them as `Backbone.joined` has them."""
        if images.shape[1] == 3:
            f2, f3, f4 = self.backbone(images.contiguous(memory_format=torch.channels_last))
        else:
            f2, f3, f4 = images.split(self.backbone.channels, dim=1)
        f2 = resize(f2, f3.shape[-2:])
        mid = torch.cat([f2, f3], dim=1)
        if self.base_learner is None:
            return Frozen(mid, (f4,), None)
        return Frozen(mid, (f4, self.base_learner.features(f4)), gram(f2))

    def embed(self, frozen: Frozen, role: Literal["query", "support"]) -> Embedded:
        """Frozen features reduced to the trunk's width and size, for one of the two roles."""
        reduce = self.embedding.query if role == "query" else self.embedding.support
        return Embedded(resize(reduce(frozen.mid), self.feature_size), frozen.levels, frozen.gram)

    def support_state(self, support: Embedded, support_mask: Tensor) -> SupportState:
        """Prototypes and the trunk's memories of embedded supports `(B * K, ...)` with masks `(B, K, H, W)`."""
        shots = support_mask.shape[:2]
        mask = self._resized(support_mask, support.reduced.dtype)
        mid = support.reduced.unflatten(0, shots)
        prototype = masked_average(mid, mask).mean(1)[..., None, None]  # (B, C, 1, 1)
        support_map = (mid * mask).mean(1)  # (B, C, f, f)
        s = torch.cat([support_map, prototype.expand_as(support_map), mask.mean(1)], dim=1)
        s = self.embedding.merge_support(s).permute(0, 2, 3, 1)  # (B, f, f, C)
        return SupportState(
            prototype,
            self._prototypes(support.levels, mask),
            None if support.gram is None else support.gram.unflatten(0, shots),
            self.trunk.encode_support(s),
        )

    def score(self, query: Embedded, support: SupportState, left_out: Tensor | None = None) -> Scores:
        """Scores `(B, 2, f, f)` of embedded queries at the trunk's size; `left_out` as in `forward`."""
        prior = self.prior(query.levels, support.levels)
        q = torch.cat([query.reduced, support.prototype.expand_as(query.reduced), PRIOR_GAIN * prior], dim=1)
        q = self.embedding.merge_query(q).permute(0, 2, 3, 1)  # (B, f, f, C)
        q = self.trunk(q, support.memories)
        meta = self.decode(q)
        return Scores(meta, self.ensemble(meta, query, support, left_out))

    @torch.no_grad()
    def prior(self, query: Levels, support: Levels) -> Tensor:
        """Foreground and discriminative prior masks, `(B, 2, f, f)`, of queries' levels and supports' prototypes."""
        pairs = zip(query, support, strict=True)
        return select_prior([level_prior(level, known, self.feature_size) for level, known in pairs])

    def decode(self, q: Tensor) -> Tensor:
        """The query as it leaves the trunk, `(B, f, f, C)`, to meta logits `(B, 2, f, f)`."""
        return self.decoder(q.permute(0, 3, 1, 2))

    def ensemble(self, meta: Tensor, query: Embedded, support: SupportState, left_out: Tensor | None = None) -> Tensor:
        """Meta logits `(B, 2, f, f)` to final scores of the same shape; the same tensor without a base learner."""
        if self.base_learner is None or self.merging is None:
            return meta
        assert query.gram is not None and support.gram is not None
        with torch.no_grad():
            base = base_map(self.base_logits(query), left_out)
            difference = scene_difference(query.gram, support.gram)
        return self.merging(meta, base, difference)

    @torch.no_grad()
    def base_logits(self, query: Embedded) -> Tensor:
        """The base learner's own map of embedded queries, `(B, 1 + base classes, f, f)`; needs a base learner."""
        assert self.base_learner is not None
        return self.base_learner.classify(resize(query.levels[-1], self.feature_size))

    def encode_support(self, support: Tensor, support_mask: Tensor) -> SupportState:
        """Everything that depends on the support only: support `(B, K, 3, H, W)`, support_mask `(B, K, H, W)`."""
        return self.support_state(self.embed(self.features(support.flatten(0, 1)), "support"), support_mask)

    def prior_scores(self, query: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
        """The training-free baseline: the foreground prior in [0, 1], `(B, H, W)`; arguments as in `forward`."""
        levels = self.features(support.flatten(0, 1)).levels
        known = self._prototypes(levels, self._resized(support_mask, levels[0].dtype))
        return resize(self.prior(self.features(query).levels, known)[:, :1], query.shape[-2:]).squeeze(1)

    def _resized(self, support_mask: Tensor, dtype: torch.dtype) -> Tensor:
        """How much of each cell is foreground, `(B, K, 1, f, f)`, of masks `(B, K, H, W)`."""
        return resize((support_mask == 1).to(dtype), self.feature_size).unsqueeze(2)

    @torch.no_grad()
    def _prototypes(self, levels: Levels, mask: Tensor) -> Levels:
        return tuple(prototypes(level.unflatten(0, mask.shape[:2]), mask) for level in levels)

    def prototype_scores(self, query: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
        """The simplest baseline: cosines `(B, 2, H, W)` of stage 4 with the background and foreground prototypes.

        Prototypes are means over all shots; arguments as in `forward`.
        """
        levels = self.features(support.flatten(0, 1)).levels
        known = self._prototypes(levels, self._resized(support_mask, levels[0].dtype))[0].mean(1)  # (B, 2, C)
        unit = F.normalize(self.features(query).levels[0], dim=1)  # (B, C, h, w)
        cosines = torch.einsum("bchw,bnc->bnhw", unit, F.normalize(known, dim=-1))
        return resize(cosines.flip(1), query.shape[-2:])

    def learnable_groups(self) -> list[list[nn.Parameter]]:
        """Parameters that train outside the trunk, one group per module in the released optimiser's order."""
        embedding, decoder = self.embedding, self.decoder
        modules: list[nn.Module] = [
            *(embedding.query, embedding.support, embedding.merge_query, embedding.merge_support),
            *(decoder.aspp, decoder.merge, decoder.refine, decoder.classifier),
        ]
        if self.merging:
            modules += self.merging.children()
        return [list(module.parameters()) for module in modules]


def _split_roles(frozen: Frozen, images: int) -> tuple[Frozen, Frozen]:
    """Cut features of `(B * (1 + K))` images into those of B queries and of B * K supports."""
    grouped = frozen.map(lambda x: x.unflatten(0, (-1, images)))
    return grouped.map(lambda x: x[:, 0]), grouped.map(lambda x: x[:, 1:].flatten(0, 1))


def _reduction(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.ReLU(), nn.Dropout2d(0.5))

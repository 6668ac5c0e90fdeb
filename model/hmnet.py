"""HMNet from images to scores: features -> embed -> trunk -> decode -> ensemble.

Source: "Hybrid Mamba for Few-Shot Segmentation", NeurIPS 2024 (arXiv 2409.19613).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import Backbone
from model.base_learner import BaseLearner
from model.decoder import Decoder
from model.ensemble import Ensemble, base_map, gram, scene_difference
from model.loss import dice_loss
from model.mamba import SupportMemory, Trunk
from model.prior import level_prior, masked_average, prototypes, select_prior
from model.resize import resize

IGNORE = 255
PRIOR_GAIN = 10


class Features(NamedTuple):
    """What the head needs of a batch of images; f5 and gram are None without the ensemble."""

    mid: Tensor  # stages 2 and 3 concatenated (B, C2 + C3, h, w); once embedded for query or support (B, C, f, f)
    f4: Tensor  # (B, C4, h4, w4)
    f5: Tensor | None  # (B, 512, h4, w4)
    gram: Tensor | None  # (B, C2, C2)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The features with every tensor changed alike."""
        f5, gram = (None if x is None else change(x) for x in (self.f5, self.gram))
        return Features(change(self.mid), change(self.f4), f5, gram)


class SupportState(NamedTuple):
    """All that the query needs of its supports; independent of the query."""

    prototype: Tensor  # (B, C, 1, 1)
    levels: list[Tensor]  # per feature level (B, K, 2, channels): foreground and background prototypes
    gram: Tensor | None  # (B, K, C2, C2)
    memories: list[SupportMemory | None]  # one per trunk block

    def expand(self, batch: int) -> "SupportState":
        """Share one support set, B = 1, among `batch` queries without copying it."""
        return SupportState(
            self.prototype.expand(batch, -1, -1, -1),
            [level.expand(batch, -1, -1, -1) for level in self.levels],
            None if self.gram is None else self.gram.expand(batch, -1, -1, -1),
            [memory and memory.expand(batch) for memory in self.memories],
        )


class Embed(nn.Module):
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
        self.embed = Embed(backbone.channels[2] + backbone.channels[3], width)
        self.trunk = trunk
        self.decoder = Decoder(width)
        self.ensemble = Ensemble(shot, kshot_trans_dim, kshot_unsort) if base_learner else None

    def train(self, mode: bool = True) -> "HMNet":
        """Set the mode of all but the frozen parts, whose batch norms always use their running statistics."""
        super().train(mode)
        self.backbone.eval()
        if self.base_learner:
            self.base_learner.eval()
        return self

    def forward(
        self,
        query: Tensor,
        support: Tensor,
        support_mask: Tensor,
        query_mask: Tensor | None = None,
        base_class: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Scores of a query, or, given its mask, the training losses.

        Args: query `(B, 3, H, W)`, normalised; support `(B, K, 3, H, W)`; support_mask `(B, K, H, W)`, of which only
        the value 1 is foreground; for training query_mask `(B, H, W)` in {0, 1, 255} and base_class `(B,)`, the
        0-based position of the episode's class among the base classes.
        Returns: scores `(B, 2, H, W)`, channel 1 foreground; in training a dict of prediction `(B, H, W)` and the
        scalars cross_entropy and dice, whose sum is the loss.
        """
        images = torch.cat([query.unsqueeze(1), support], dim=1)  # (B, 1 + K, 3, H, W): one backbone batch
        frozen = self.extract(images.flatten(0, 1))
        query_features, support_features = _split_roles(frozen, images.shape[1])
        state = self.support_state(self.as_support(support_features), support_mask)
        meta, final = self.score(self.as_query(query_features), state, base_class if self.training else None)
        final = resize(final, query.shape[-2:])
        if query_mask is None:
            return final
        return {
            "prediction": final.argmax(1),
            "cross_entropy": F.cross_entropy(final, query_mask, ignore_index=IGNORE),
            "dice": dice_loss(resize(meta, query.shape[-2:]), query_mask, IGNORE),
        }

    def encode_support(self, support: Tensor, support_mask: Tensor) -> SupportState:
        """Everything that depends on the support only: support `(B, K, 3, H, W)`, support_mask `(B, K, H, W)`."""
        return self.support_state(self.as_support(self.extract(support.flatten(0, 1))), support_mask)

    def segment(self, query: Tensor, state: SupportState) -> Tensor:
        """Scores `(B, 2, H, W)` of queries `(B, 3, H, W)` for supports encoded before."""
        return self.score_images(self.as_query(self.extract(query)), state, query.shape[-2:])

    def score_images(self, query: Features, state: SupportState, size: Sequence[int]) -> Tensor:
        """Scores `(B, 2, *size)` at the images' size of embedded queries."""
        return resize(self.score(query, state)[1], size)

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Frozen features of images `(B, 3, H, W)`, in whichever role they will play."""
        f2, f3, f4 = self.backbone(images.contiguous(memory_format=torch.channels_last))
        f2 = resize(f2, f3.shape[-2:])
        mid = torch.cat([f2, f3], dim=1)
        if self.base_learner is None:
            return Features(mid, f4, None, None)
        return Features(mid, f4, self.base_learner.features(f4), gram(f2))

    def as_query(self, frozen: Features) -> Features:
        """Frozen features with `mid` embedded for a query, `(B, C, f, f)`."""
        return frozen._replace(mid=resize(self.embed.query(frozen.mid), self.feature_size))

    def as_support(self, frozen: Features) -> Features:
        """Frozen features with `mid` embedded for a support, `(B, C, f, f)`."""
        return frozen._replace(mid=resize(self.embed.support(frozen.mid), self.feature_size))

    def support_state(self, support: Features, support_mask: Tensor) -> SupportState:
        """Prototypes and trunk memories of embedded supports `(B * K, ...)` with masks `(B, K, H, W)`."""
        shots = support_mask.shape[:2]
        foreground = (support_mask == 1).to(support.mid.dtype)
        mask = resize(foreground, self.feature_size).unsqueeze(2)  # (B, K, 1, f, f)
        mid = support.mid.unflatten(0, shots)
        prototype = masked_average(mid, mask).mean(1)[..., None, None]  # (B, C, 1, 1)
        support_map = (mid * mask).mean(1)  # (B, C, f, f)
        s = self.embed.merge_support(torch.cat([support_map, prototype.expand_as(support_map), mask.mean(1)], dim=1))
        with torch.no_grad():
            levels = [prototypes(level.unflatten(0, shots), mask) for level in _levels(support)]
        return SupportState(
            prototype,
            levels,
            None if support.gram is None else support.gram.unflatten(0, shots),
            self.trunk.encode_support(s.permute(0, 2, 3, 1)),
        )

    def score(self, query: Features, state: SupportState, left_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Meta logits and final scores, both `(B, 2, f, f)`, of embedded queries.

        `left_out (B,)`: the base class that the base map leaves out, in training.
        """
        prior = self.prior(query, state)
        prototype = state.prototype.expand_as(query.mid)
        q = self.embed.merge_query(torch.cat([query.mid, prototype, PRIOR_GAIN * prior], dim=1))
        q = self.trunk(q.permute(0, 2, 3, 1), state.memories).permute(0, 3, 1, 2)
        meta = self.decoder(q)
        if self.base_learner is None or self.ensemble is None:
            return meta, meta
        assert query.f5 is not None and query.gram is not None and state.gram is not None
        with torch.no_grad():
            base = base_map(self.base_learner.classify(resize(query.f5, self.feature_size)), left_out)
            difference = scene_difference(query.gram, state.gram)
        return meta, self.ensemble(meta, base, difference)

    @torch.no_grad()
    def prior(self, query: Features, state: SupportState) -> Tensor:
        """Foreground and discriminative prior masks, `(B, 2, f, f)`."""
        pairs = zip(_levels(query), state.levels, strict=True)
        return select_prior([level_prior(level, known, self.feature_size) for level, known in pairs])

    def prior_scores(self, query: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
        """The training-free baseline: the foreground prior in [0, 1], `(B, H, W)`; arguments as in `forward`."""
        state = self.encode_support(support, support_mask)
        return resize(self.prior(self.extract(query), state)[:, :1], query.shape[-2:]).squeeze(1)

    def learnable_groups(self) -> list[list[nn.Parameter]]:
        """Parameters that train outside the trunk, one group per module in the released optimiser's order."""
        modules: list[nn.Module] = [
            *(self.embed.query, self.embed.support, self.embed.merge_query, self.embed.merge_support),
            *(self.decoder.aspp, self.decoder.merge, self.decoder.refine, self.decoder.classifier),
        ]
        if self.ensemble:
            modules += self.ensemble.children()
        return [list(module.parameters()) for module in modules]


def _levels(features: Features) -> list[Tensor]:
    return [features.f4] if features.f5 is None else [features.f4, features.f5]


def _split_roles(frozen: Features, images: int) -> tuple[Features, Features]:
    """Cut features of `(B * (1 + K))` images into those of B queries and of B * K supports."""
    grouped = frozen.map(lambda x: x.unflatten(0, (-1, images)))
    return grouped.map(lambda x: x[:, 0]), grouped.map(lambda x: x[:, 1:].flatten(0, 1))


def _reduction(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.ReLU(), nn.Dropout2d(0.5))

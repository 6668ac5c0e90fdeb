"""DCAMA: every query position averages the support's mask by its attention to all support positions.

Source: "Dense Cross-Query-and-Support Attention Weighted Mask Aggregation for Few-Shot Segmentation", ECCV 2022
(arXiv 2207.08549).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from model.backbone import Backbone
from model.loss import cross_entropy
from model.methods.method import IGNORED_PIXELS, Features, Method, Role, Scores, State
from model.optim import ScheduledOptimizer
from model.parts.base_learner import BaseLearner
from model.parts.block_maps import (
    KERNELS,
    STAGES,
    WIDTHS,
    all_pixel_cross_entropy,
    block_maps,
    conv3x3_relu,
    conv_blocks,
    plain_backbone,
)
from model.released import NameTable
from model.resize import resize
from util.config import Config
from util.errors import UserError
from util.image import ImageRule

HEADS = 8
DROPOUT = 0.5  # of tokens and of attention
# Published weights were trained on timm's ImageNet weights, not on torchvision's (quirk).
IMAGENET_FILES = {"resnet50": "resnet50_a1h-35c100f8.pth", "resnet101": "resnet101_a1h-36d3f2aa.pth"}


class Projection(nn.Module):
    """A stage's tokens to queries and keys; there are no values and no output projection (paper, section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.support = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, role: Role) -> Tensor:
        """Map `(B, C, h, w)` to projected tokens `(B, h * w, C)`; every image's positions are counted from 0."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.dropout(tokens + position_code(tokens))
        return (self.query if role == "query" else self.support)(tokens)


class DCAMA(Method):
    """Segments by what every block of the backbone says of where the query is like the supports' objects.

    Args: a plain ResNet; the names of its maps by stage; those of the last maps of stages 1 and 2, the skips.

    Features: all these maps. Embedded: `tokens` by map, `(B, h * w, C)`, and the skips. State: `tokens` of all shots
    `(B, K * h * w, C)`, `masks` by stage `(B, K * h * w)`, and of the skips the maximum over the shots.
    """

    uses_base_learner = False
    images = ImageRule(resample="antialias", augment="none", keep_ignored=False)
    released_names: ClassVar[NameTable] = (
        (r"backbone\.layer0\.0", r"feature_extractor.conv1"),
        (r"backbone\.layer0\.1", r"feature_extractor.bn1"),
        (r"backbone", r"feature_extractor"),
        (r"projections\.(\d)\.query", lambda m: f"model.DCAMA_blocks.{int(m[1]) - 2}.linears.0"),
        (r"projections\.(\d)\.support", lambda m: f"model.DCAMA_blocks.{int(m[1]) - 2}.linears.1"),
        (r"encoder([234])", lambda m: f"model.conv{5 - int(m[1])}"),
        (r"encoder4to3", r"model.conv4"),
        (r"encoder3to2", r"model.conv5"),
        (r"(mixer\d)", r"model.\1"),
    )
    unused_names: ClassVar[tuple[str, ...]] = ("feature_extractor.fc.", "model.pe.")  # `position_code` as tables
    item_means = ("cross_entropy",)  # as ignored pixels count
    corrections = IGNORED_PIXELS

    def __init__(self, backbone: Backbone, stages: dict[str, tuple[str, ...]], skips: tuple[str, str]) -> None:
        super().__init__(backbone, (*skips[:1], *(name for stage in STAGES for name in stages[stage])))
        self.stages, self.skips = stages, skips
        self.projections = nn.ModuleDict({stage: Projection(*backbone.channels(stages[stage][:1])) for stage in STAGES})
        self.dropout = nn.Dropout(DROPOUT)  # of the attention
        self.encoder4, self.encoder3, self.encoder2 = (_encoder(len(stages[stage]), stage) for stage in ("4", "3", "2"))
        self.encoder4to3, self.encoder3to2 = _mixer(), _mixer()
        skipped = 2 * sum(backbone.channels(skips))  # of query and support
        self.mixer1 = conv3x3_relu(128 + skipped, 128, 64)
        self.mixer2 = conv3x3_relu(64, 64, 16)
        self.mixer3 = conv3x3_relu(16, 16, 2, last_relu=False)

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "DCAMA":
        """As in Method; images have sides of 32m pixels, so that every stage's map is half as large as the last."""
        first = [info.name for info in backbone.maps if info.name.startswith("layer1.")]
        if not first:
            raise UserError(f"backbone: {cls.__name__} takes resnet50 or resnet101, not {cfg.backbone_name}")
        stages = block_maps(backbone, cls.__name__)
        backbone.size_multiple, backbone.size_offset = 32, 0
        return cls(backbone, stages, (first[-1], stages["2"][-1]))

    @classmethod
    def configured(cls, cfg: Config) -> Config:
        """As in Method: torchvision's ResNet with timm's weights."""
        weights = cfg.imagenet_weights or IMAGENET_FILES.get(cfg.backbone_name)
        return plain_backbone(cfg, imagenet_weights=weights)

    def embed(self, features: Features, role: Role) -> Features:
        """Tokens projected for one of the two roles, and the skips as they are."""
        tokens = {
            name: self.projections[stage](features[name], role)
            for stage, names in self.stages.items()
            for name in names
        }
        return {"tokens": tokens, **{name: features[name] for name in self.skips}}

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in Method; nothing is masked, the masks are what is averaged."""
        shots = masks.shape[:2]
        fine = support[self.skips[1]]  # as large as stage 2
        sizes = {stage: [side >> number for side in fine.shape[-2:]] for number, stage in enumerate(STAGES)}
        mask = (masks == 1).to(fine.dtype)
        return {
            "tokens": {name: x.unflatten(0, shots).flatten(1, 2) for name, x in support["tokens"].items()},
            "masks": {stage: resize(mask, sizes[stage]).flatten(1) for stage in STAGES},
            **{name: support[name].unflatten(0, shots).amax(1) for name in self.skips},
        }

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in Method, `(B, 2, S, S)`, the images' size."""
        coarse = self.aggregate(query, state)
        x = self.encoder4(coarse["4"])
        x = self.encoder3(coarse["3"]) + resize(x, coarse["3"].shape[-2:])
        x = self.encoder4to3(x)
        x = self.encoder2(coarse["2"]) + resize(x, coarse["2"].shape[-2:])
        x = self.encoder3to2(x)
        finer, fine = self.skips
        x = torch.cat([x, query[fine], state[fine]], dim=1)
        x = torch.cat([_twice(x), query[finer], state[finer]], dim=1)
        x = self.mixer3(_twice(self.mixer2(_twice(self.mixer1(x)))))
        return Scores(x, x)

    def aggregate(self, query: Features, state: State) -> dict[str, Tensor]:
        """The masks averaged by attention, by stage one channel a block, `(B, blocks, h, w)`."""
        height, width = query[self.skips[1]].shape[-2:]
        rate = self.dropout.p * self.dropout.training
        return {
            stage: torch.stack(
                [average_mask(query["tokens"][n], state["tokens"][n], state["masks"][stage], rate) for n in names],
                dim=1,
            ).unflatten(-1, (height >> number, width >> number))
            for number, (stage, names) in enumerate(self.stages.items())
        }

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """As in Method: the mean over all pixels, also those to ignore (quirk)."""
        loss = cross_entropy if "ignored_pixels" in self.corrected else all_pixel_cross_entropy
        return {"cross_entropy": loss(scores.final, truth)}

    def optimizers(self, cfg: Config) -> dict[str, ScheduledOptimizer]:
        """SGD with Nesterov's momentum and a constant rate."""
        (learnt,) = self.parameter_groups()
        decay, momentum = cfg.weight_decay, cfg.momentum
        return {"all": ScheduledOptimizer(SGD(learnt, cfg.base_lr, momentum, weight_decay=decay, nesterov=True))}


def position_code(tokens: Tensor) -> Tensor:
    """Sines and cosines of the positions of `tokens (B, n, C)`, counted row by row: `(n, C)`."""
    count, channels = tokens.shape[1:]
    steps = torch.arange(0, channels, 2, device=tokens.device) * (-math.log(10000) / channels)
    angles = torch.arange(count, device=tokens.device)[:, None] * steps.exp()  # (n, C / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).to(tokens.dtype)


def average_mask(query: Tensor, support: Tensor, mask: Tensor, dropout: float = 0) -> Tensor:
    """`mask (B, m)` averaged over support tokens by attention, a mean over the heads: `(B, n)`.

    `query (B, n, C)`, `support (B, m, C)`. The mask is padded to the width of a head, as fused attention wants it.
    """
    q, k = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, support))  # (B, heads, n, C / heads)
    value = F.pad(mask.to(q.dtype)[:, None, :, None], (0, q.shape[-1] - 1)).expand(-1, HEADS, -1, -1)
    return F.scaled_dot_product_attention(q, k, value, dropout_p=dropout)[..., 0].mean(1)


def _twice(x: Tensor) -> Tensor:
    return resize(x, [2 * side for side in x.shape[-2:]])


def _encoder(inputs: int, stage: str) -> nn.Sequential:
    """The convolutions that squeeze a stage's coarse masks."""
    channels = zip((inputs, *WIDTHS), WIDTHS, KERNELS[stage], strict=False)
    return conv_blocks([nn.Conv2d(a, b, kernel, padding=kernel // 2) for a, b, kernel in channels])


def _mixer() -> nn.Sequential:
    """Convolutions that keep the channels."""
    return conv_blocks([nn.Conv2d(128, 128, 3, padding=1) for _ in range(3)], (128,) * 3)

"""HDMNet's transformer: a pyramid of self-attention, and matching of query and support at each of its scales.

Source: "Hierarchical Dense Correlation Distillation for Few-Shot Segmentation", CVPR 2023, sections 3.2 and 3.3; the
encoder is SegFormer's (NeurIPS 2021). Maps of tokens are channels last, `(B, h, w, C)`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.resize import resize

HEADS, REDUCTIONS = (2, 4, 8), (4, 2, 1)  # of the pyramid's stages, from fine to coarse
MATCHING_HEADS = 2
HIDDEN = 256  # channels within MLPs and convolutions
DROPOUT = 0.1
TEMPERATURE = 0.1  # of the cosines of query and support


class Attention(nn.Module):
    """Multi-head self-attention without biases; keys and values may be of a map that is smaller by `reduction`."""

    def __init__(self, width: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(DROPOUT)
        if reduction > 1:
            self.reduce, self.norm = nn.Conv2d(width, width, reduction, reduction), nn.LayerNorm(width, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, h, w, C)` to the same."""
        small = x
        if hasattr(self, "reduce"):
            small = self.norm(self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        q, k, v = self.split(self.query(x)), self.split(self.key(small)), self.split(self.value(small))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(x.shape)))

    def split(self, x: Tensor) -> Tensor:
        """`(B, h, w, C)` to `(B, heads, h * w, C / heads)`."""
        return x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention = Attention(width, heads, reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, HIDDEN, 1),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Conv2d(HIDDEN, width, 1),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, h, w, C)` to the same."""
        return self.add_mlp(x + self.attention(self.norm1(x)))

    def add_mlp(self, x: Tensor) -> Tensor:
        """The layer's second half alone."""
        return x + self.mlp(self.norm2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PatchEmbedding(nn.Module):
    """A convolution, 1x1 or 3x3 of stride 2, and a layer norm."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        kernel = 2 * stride - 1
        self.projection, self.norm = nn.Conv2d(width, width, kernel, stride, kernel // 2), nn.LayerNorm(width, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, h, w, C)` to `(B, h / stride, w / stride, C)`, sides rounded up."""
        return self.norm(self.projection(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Pyramid(nn.Module):
    """Three stages of two encoder layers, each half as large as the one before; one for query and support."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                PatchEmbedding(width, stride=2 if number else 1),
                EncoderLayer(width, heads, reduction),
                EncoderLayer(width, heads, reduction),
                nn.LayerNorm(width, 1e-6),
            )
            for number, (heads, reduction) in enumerate(zip(HEADS, REDUCTIONS, strict=True))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, C, f, f)` to the stages' maps `(B, h, w, C)`, from fine to coarse."""
        maps = [x.permute(0, 2, 3, 1)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class MatchMemory(NamedTuple):
    """The tokens of all shots at one scale."""

    key: Tensor  # (B, heads, n, C / heads), unit vectors
    value: Tensor  # the same shape
    mask: Tensor  # (B, n), 0 or 1


class Matching(nn.Module):
    """The query attends to the support's object at one scale, and what it finds is parsed with the priors."""

    def __init__(self, width: int, priors: int) -> None:
        super().__init__()
        self.layer = EncoderLayer(width, MATCHING_HEADS)
        conv = nn.Conv2d(width + priors, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        self.merge = nn.Sequential(conv, nn.BatchNorm2d(width))
        self.parse = nn.Sequential(*conv_bn(width, width), nn.BatchNorm2d(width))

    def remember(self, support: Tensor, masks: Tensor) -> MatchMemory:
        """Keys and values of a stage's maps `(B * K, h, w, C)` under the masks `(B, K, H, W)`, resized by nearest."""
        mask = F.interpolate((masks == 1).to(support.dtype), support.shape[1:3])
        support = self.layer.norm1(support).unflatten(0, masks.shape[:2]).flatten(1, 2)  # (B, K * h, w, C)
        attention = self.layer.attention
        key, value = attention.split(attention.key(support)), attention.split(attention.value(support))
        return MatchMemory(F.normalize(key, dim=-1), value, mask.flatten(1))

    def forward(self, q: Tensor, memory: MatchMemory, priors: Tensor) -> tuple[Tensor, Tensor]:
        """The query's map `(B, h, w, C)` and priors `(B, n, f, f)` to the matched map and its correlations.

        `(B, C, h, w)` and `(B, h, w)`: the mean cosine with the masked tokens, by the temperature.
        """
        attention = self.layer.attention
        query = F.normalize(attention.split(attention.query(self.layer.norm1(q))), dim=-1) / TEMPERATURE
        samples = zip(query, *memory, strict=True)
        mixed = torch.stack([spread(*sample) for sample in samples]).transpose(1, 2).reshape(q.shape)
        x = self.layer.add_mlp(q + attention.dropout(attention.out(mixed))).permute(0, 3, 1, 2)
        total = memory.mask.sum(1)[:, None, None] + 1e-9
        mean = (memory.key * memory.mask[:, None, :, None]).sum(2) / total  # (B, heads, C / heads)
        correlation = torch.einsum("bhmc,bhc->bhm", query, mean).mean(1).unflatten(1, q.shape[1:3])
        return F.relu(self.merge(torch.cat([x, resize(priors, q.shape[1:3])], dim=1))), correlation


def spread(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Every masked support token spreads its value over the query's positions by a softmax over these (section 3.3).

    `query (heads, m, d)`, `key` and `value (heads, n, d)`, `mask (n,)` to `(heads, m, d)`.
    """
    seen = mask > 0
    attention = (key[:, seen] @ query.transpose(1, 2)).softmax(-1)  # (heads, seen, m)
    return attention.transpose(1, 2) @ value[:, seen]


def conv_bn(width: int, outputs: int) -> nn.Sequential:
    """Convolutions 1x1, 3x3, 1x1 with batch norms, but none behind the last, and no activation between (quirk)."""
    return nn.Sequential(
        nn.Conv2d(width, HIDDEN, 1),
        nn.BatchNorm2d(HIDDEN),
        nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
        nn.BatchNorm2d(HIDDEN),
        nn.Conv2d(HIDDEN, outputs, 1),
    )

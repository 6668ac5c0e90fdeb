"""Other ways for the query to meet the support, to compare Mamba with (paper, section 5.3 and Table 8).

Blocks for the trunk like HMNet's own, with the same width and MLPs. None is the cited network itself: it is that
network's way of mixing query and support, put into the same surroundings.
"""

from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.parts.mamba import HybridBlock, SelfBlock
from model.parts.order import patch_orders
from model.parts.trunk import Block, Trunk
from util.config import Config

HEADS = 8


class AttentionMemory(NamedTuple):
    """A support's keys and values."""

    key: Tensor  # (B, f, f, heads, C / heads)
    value: Tensor  # the same


class PatchMemory(NamedTuple):
    """A support's keys and values by patch, and what each patch looks like."""

    key: Tensor  # (B, P, f * f / P, heads, C / heads)
    value: Tensor  # the same
    look: Tensor  # (B, P, C), unit vectors


class AttentionBranch(nn.Module):
    """What query and support each have of their own: position, `parts` projections, output projection, MLP.

    Args: width C; how many of query, key and value are projected; `mixes`: whether anything is to be projected back.
    """

    def __init__(self, width: int, parts: int, mixes: bool = True) -> None:
        super().__init__()
        self.parts = parts
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.in_proj = nn.Linear(width, parts * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False) if mixes else nn.Identity()
        self.mlp = mlp(width)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """`(B, f, f, C)` to its projections `(B, f, f, heads, C / heads)`; neighbours say where a position lies."""
        x = x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.in_proj(x).unflatten(-1, (self.parts, HEADS, -1)).unbind(3)


class MlpBlock(nn.Module):
    """The block's MLP without any mixing of positions: query and support only meet in the embedding."""

    fuses = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_2, self.mlp = nn.LayerNorm(width), mlp(width)

    def forward(self, q: Tensor, memory: None) -> Tensor:
        """The query's way through the block, `(B, f, f, C)` to the same."""
        return q + self.mlp(self.ln_2(q))

    def encode_support(self, s: Tensor) -> tuple[Tensor, None]:
        """The support as it is, and no memory."""
        return s, None

    def remember(self, s: Tensor) -> None:
        """No memory."""


class SelfAttentionBlock(nn.Module):
    """Query and support each attend to themselves; they share the layer norms."""

    fuses = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.support = AttentionBranch(width, parts=3), AttentionBranch(width, parts=3)

    def forward(self, q: Tensor, memory: None) -> Tensor:
        """The query's way through the block, `(B, f, f, C)` to the same."""
        return self._attend(self.query, q)

    def encode_support(self, s: Tensor) -> tuple[Tensor, None]:
        """The support's way through the block; it leaves no memory."""
        return self._attend(self.support, s), None

    def remember(self, s: Tensor) -> None:
        """No memory."""

    def _attend(self, branch: AttentionBranch, x: Tensor) -> Tensor:
        parts = (part.flatten(1, 2) for part in branch.project(self.ln_1(x)))
        x = x + branch.out_proj(attend(*parts).unflatten(1, x.shape[1:3]))
        x = x + branch.mlp(self.ln_2(x))
        return x


class CrossAttentionBlock(nn.Module):
    """The query attends to the whole support (as in CyCTR, NeurIPS 2021, without its cycle consistency)."""

    fuses = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.support = AttentionBranch(width, parts=1), AttentionBranch(width, parts=2, mixes=False)

    def forward(self, q: Tensor, memory: AttentionMemory) -> Tensor:
        """The query's way through the block, `(B, f, f, C)` to the same."""
        (query,) = self.query.project(self.ln_1(q))
        mixed = attend(*(x.flatten(1, 2) for x in (query, *memory)))
        q = q + self.query.out_proj(mixed.unflatten(1, q.shape[1:3]))
        q = q + self.query.mlp(self.ln_2(q))
        return q

    def encode_support(self, s: Tensor) -> tuple[Tensor, AttentionMemory]:
        """The support's way through the block: its MLP alone; and the memory for the query."""
        return s + self.support.mlp(self.ln_2(s)), self.remember(s)

    def remember(self, s: Tensor) -> AttentionMemory:
        """The memory alone."""
        return AttentionMemory(*self.support.project(self.ln_1(s)))


class SelfCalibratedBlock(nn.Module):
    """Every query patch attends to itself and to the support patch most like it, in one softmax.

    So a background pixel that finds nothing of its kind in the support can turn to its own patch (SCCAN, ICCV 2023).
    Patches are alike by the cosine of their mean features. Args: width C; `patch_ratio`, the patches along a side.
    """

    fuses = True

    def __init__(self, width: int, patch_ratio: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.support = AttentionBranch(width, parts=3), AttentionBranch(width, parts=2, mixes=False)
        self.patch_ratio = patch_ratio

    def forward(self, q: Tensor, memory: PatchMemory) -> Tensor:
        """The query's way through the block, `(B, f, f, C)` to the same."""
        order = patch_orders(q.shape[1], self.patch_ratio, q.device)[0]
        x = self.ln_1(q)
        query, key, value = (self._cut(part, order) for part in self.query.project(x))  # (B, P, t, heads, d)
        nearest = (self._look(x, order) @ memory.look.transpose(1, 2)).argmax(2)  # (B, P)
        sample = torch.arange(len(q), device=q.device)[:, None]
        key = torch.cat([key, memory.key[sample, nearest]], dim=2)  # (B, P, 2t, heads, d)
        value = torch.cat([value, memory.value[sample, nearest]], dim=2)
        mixed = attend(*(part.flatten(0, 1) for part in (query, key, value)))  # (B * P, t, C)
        mixed = mixed.view(len(q), -1, mixed.shape[-1])[:, order.argsort()]
        q = q + self.query.out_proj(mixed.unflatten(1, q.shape[1:3]))
        q = q + self.query.mlp(self.ln_2(q))
        return q

    def encode_support(self, s: Tensor) -> tuple[Tensor, PatchMemory]:
        """The support's way through the block: its MLP alone; and the memory for the query."""
        return s + self.support.mlp(self.ln_2(s)), self.remember(s)

    def remember(self, s: Tensor) -> PatchMemory:
        """The memory alone."""
        order = patch_orders(s.shape[1], self.patch_ratio, s.device)[0]
        x = self.ln_1(s)
        key, value = (self._cut(part, order) for part in self.support.project(x))
        return PatchMemory(key, value, self._look(x, order))

    def _cut(self, x: Tensor, order: Tensor) -> Tensor:
        """`(B, f, f, ...)` to its patches `(B, P, t, ...)`."""
        return x.flatten(1, 2)[:, order].unflatten(1, (self.patch_ratio**2, -1))

    @torch.no_grad()
    def _look(self, x: Tensor, order: Tensor) -> Tensor:
        return F.normalize(self._cut(x, order).mean(2), dim=-1)


def _self_attention(cfg: Config) -> Block:
    return SelfAttentionBlock(cfg.width)


FUSIONS: dict[str, tuple[Callable[[Config], Block], ...]] = {  # what makes the blocks, in turn
    "concat": (),  # the decoder on the embedding alone
    "mlp": (lambda cfg: MlpBlock(cfg.width),),
    "cross_attention": (_self_attention, lambda cfg: CrossAttentionBlock(cfg.width)),
    "self_calibrated": (_self_attention, lambda cfg: SelfCalibratedBlock(cfg.width, cfg.patch_ratio)),
}


def build_trunk(cfg: Config) -> Trunk:
    """The trunk of the blocks that `fusion` names, in turn."""
    kinds = hmnet_blocks(cfg) if cfg.fusion_name == "hmnet" else FUSIONS[cfg.fusion_name]
    blocks = [make(cfg) for make, _ in zip(cycle(kinds), range(cfg.blocks), strict=False)]
    return Trunk(blocks, cfg.width, cfg.checkpoint_blocks)


def hmnet_blocks(cfg: Config) -> tuple[Callable[[Config], Block], ...]:
    """The kinds of HMNet's blocks, in turn."""
    own = (lambda cfg: SelfBlock(cfg.width, cfg.state_size, cfg.scan),) if cfg.self_blocks else ()
    return own if cfg.srm == cfg.qim == "none" else (*own, hybrid_block)


def hybrid_block(cfg: Config) -> HybridBlock:
    """A hybrid block with the options that the configuration names."""
    options = (cfg.patch_ratio, cfg.srm, cfg.qim, cfg.qim_skip, cfg.qim_state_grad)
    return HybridBlock(cfg.width, cfg.state_size, cfg.scan, *options)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention: `(B, L, heads, d)` and twice `(B, S, heads, d)` to `(B, L, heads * d)`."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # heads first
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def mlp(width: int) -> nn.Sequential:
    """Two linear layers of one width with a GELU between."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

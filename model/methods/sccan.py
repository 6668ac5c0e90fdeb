"""SCCAN: windows of the query attend to themselves and to the support's window that is most like them.

Source: "Self-Calibrated Cross Attention Network for Few-Shot Segmentation", ICCV 2023 (arXiv 2308.09294).
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from model.backbone.base import Backbone, StagedBackbone
from model.loss import dice_loss
from model.methods.method import MEAN_PADDING, Explanation, Features, Method, Role, Scores, State
from model.optim import ScheduledOptimizer, make_sgd
from model.parts.base_learner import BaseLearner
from model.parts.decoder import Decoder
from model.parts.fusion import mlp
from model.parts.maps import three_levels
from model.parts.prior import foreground, masked_average, min_max
from model.parts.reduction import reduction
from model.released import DECODER, RESNET, NameTable, name_at
from model.resize import resize
from model.tensors import stack_maps
from util.config import Config
from util.errors import UserError
from util.image import ImageRule

WINDOW = 8  # cells a side
HEAD = 32  # channels of a head
BLOCK = r"blocks\.(\d+)"
RELEASED_BLOCK = r"transformer.layers.0.blocks.\1"


class Memory(NamedTuple):
    """What a block keeps of a support, by windows."""

    cells: Tensor  # (B, W, 64, C), normalised
    prototypes: Tensor  # (B, W, C), means under the mask
    masked: Tensor  # (B, W), whether any of the window is under the mask


class WindowAttention(nn.Module):
    """Attention of a window's cells to themselves and, by cosines, to those of another window."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, own: Tensor, other: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """Windows `(B, W, n, C)` to the same; `seen (B, W, keys)` says which cells count, by default all."""
        q, k, v = self._heads(self.q(own))[0], *self._heads(self.kv(own))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, W, heads, n, n)
        if other is not None:
            k, others = self._heads(self.kv(other))
            cosines = F.normalize(q, dim=-1, eps=1e-7) @ F.normalize(k, dim=-1, eps=1e-7).transpose(-1, -2)
            scores, v = torch.cat([scores, cosines], dim=-1), torch.cat([v, others], dim=-2)
        if seen is not None:
            scores = scores.masked_fill(~seen[:, :, None, None], -torch.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """`(B, W, n, parts * C)` as parts of `(B, W, heads, n, 32)`."""
        width = self.proj.in_features
        return tuple(part.unflatten(-1, (-1, min(HEAD, width))).transpose(2, 3) for part in x.split(width, dim=-1))


class Block(nn.Module):
    """Attention within windows for query and support; `shifted`, windows begin half a window outside the map.

    The map is padded by zeros for that, which take part as cells of value 0 (quirk), unless `masked`.
    """

    def __init__(self, width: int, shifted: bool, masked: bool = False) -> None:
        super().__init__()
        self.pad, self.masked = WINDOW // 2 if shifted else 0, masked and shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)  # of both query and support
        self.query_attention, self.support_attention = WindowAttention(width), WindowAttention(width)
        self.query_mlp, self.support_mlp = mlp(width), mlp(width)

    def remember(self, s: Tensor, mask: Tensor) -> Memory:
        """The memory of a support map `(B, f, f, C)` and its mask `(B, f, f, 1)`."""
        cells, weights = self._windows(self.norm1(s)), self._windows(mask)
        total = weights.sum((2, 3))  # (B, W)
        return Memory(cells, (cells * weights).sum(2) / (total.unsqueeze(-1) + 5e-4), total != 0)

    def encode_support(self, s: Tensor, memory: Memory) -> Tensor:
        """The support map `(B, f, f, C)` for the next block."""
        s = s + self._map(self.support_attention(memory.cells, seen=self._seen(s)), s)
        return s + self.support_mlp(self.norm2(s))

    def forward(self, q: Tensor, memory: Memory) -> Tensor:
        """The query map `(B, f, f, C)`; each window also sees the support's window that is most like it, unmasked."""
        cells, seen = self._windows(self.norm1(q)), self._seen(q)
        best = most_like(cells.mean(2), memory)[..., None]  # (B, W, 1)
        fetched = memory.cells.gather(1, best[..., None].expand_as(cells))
        if seen is not None:
            seen = torch.cat([seen, seen.gather(1, best.expand_as(seen))], dim=2)  # (B, W, 128)
        q = q + self._map(self.query_attention(cells, fetched, seen), q)
        return q + self.query_mlp(self.norm2(q))

    def _seen(self, x: Tensor) -> Tensor | None:
        """Which cells of the windows `(B, W, 64)` of a map `(B, f, f, C)` are no padding, where that counts."""
        return self._windows(torch.ones_like(x[..., :1])).squeeze(-1) > 0 if self.masked else None

    def _windows(self, x: Tensor) -> Tensor:
        """Map `(B, f, f, C)` to windows `(B, W, 64, C)`."""
        x = F.pad(x, (0, 0, self.pad, self.pad, self.pad, self.pad))
        x = x.unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW))  # (B, rows, 8, columns, 8, C)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _map(self, windows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `_windows`, for a map of the shape of `like`."""
        rows, inside = (like.shape[1] + 2 * self.pad) // WINDOW, slice(self.pad, self.pad + like.shape[1])
        x = windows.unflatten(2, (WINDOW, WINDOW)).unflatten(1, (rows, rows)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)[:, inside, inside]


@torch.no_grad()
def most_like(query: Tensor, memory: Memory) -> Tensor:
    """The support's window of the largest cosine with each window of the query `(B, W, C)`: `(B, W)`.

    Windows without any mask come last; of equals the first is taken. In double precision, as windows may differ by less
    than single precision's rounding.
    """
    unit, known = (F.normalize(x.double(), dim=-1, eps=1e-7) for x in (query, memory.prototypes))
    return ((unit @ known.transpose(1, 2) + 1) * memory.masked.unsqueeze(1)).argmax(-1)


class SCCAN(Method):
    """Segments the query by attention between aligned windows of query and support.

    Args: backbone of three levels f2, f3, f4; feature size f, a multiple of 8; blocks; width C; `masked` as in Block.

    Features: `mid` (B, C2 + C3, h, w) and `f4`. Embedded: `reduced` (B, C, f, f) and f4. State: `prototype`
    (B, C, 1, 1); `f4` (B, K, C4, n), unit vectors, and `mask` (B, K, n, 1) of n = f * f; `memories` by block.
    """

    uses_base_learner = False
    images = ImageRule(fit="padded")  # black (quirk)
    corrections = MEAN_PADDING | {"masked_padding": "padding of shifted windows is left out; it is attended to"}
    released_names: ClassVar[NameTable] = (
        (r"backbone\.(layer0\.\d)", lambda m: f"backbone.body.{name_at(RESNET, m[1])}"),
        (r"backbone\.(layer\d)", r"backbone.body.\1"),
        (r"reduce_query", r"down_query"),
        (r"reduce_support", r"down_supp"),
        (r"merge_query", r"init_merge_query.0"),
        (r"merge_support", r"init_merge_supp.0"),
        (rf"{BLOCK}\.(q|s)\w+_attention", rf"{RELEASED_BLOCK}.attn_\2"),
        (rf"{BLOCK}\.(q|s)\w+_mlp\.0", rf"{RELEASED_BLOCK}.mlp_\2.fc1"),
        (rf"{BLOCK}\.(q|s)\w+_mlp\.2", rf"{RELEASED_BLOCK}.mlp_\2.fc2"),
        (BLOCK, RELEASED_BLOCK),
        (r"norm", r"transformer.norm0"),
        *DECODER,
    )
    item_means = frozenset({"dice"})

    def __init__(self, backbone: Backbone, size: int, blocks: int, width: int, masked: bool = False) -> None:
        super().__init__(backbone, three_levels(backbone))
        for norm in backbone.modules() if isinstance(backbone, StagedBackbone) else ():
            if isinstance(norm, nn.BatchNorm2d):
                norm.num_batches_tracked = None  # published checkpoints are without it
        self.feature_size = size
        channels = sum(backbone.channels(self.maps[:2]))
        self.reduce_query, self.reduce_support = reduction(channels, width), reduction(channels, width)
        self.merge_query, self.merge_support = (nn.Conv2d(2 * width + 1, width, 1, bias=False) for _ in range(2))
        self.blocks = nn.ModuleList(Block(width, index % 2 == 1, masked) for index in range(blocks))
        self.norm, self.decoder = nn.LayerNorm(width), Decoder(width)

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "SCCAN":
        """As in Method."""
        for key, unit in (("feature_size", WINDOW), ("width", min(HEAD, cfg.width))):
            if getattr(cfg, key) % unit:
                raise UserError(f"{key}: {getattr(cfg, key)} should be a multiple of {unit} for SCCAN")
        return cls(backbone, cfg.feature_size, cfg.blocks, cfg.width, "masked_padding" in cfg.corrections)

    @classmethod
    def configured(cls, cfg: Config) -> Config:
        """As in Method."""
        return cfg.model_copy(update={"dilate_first": False})

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method; the same for both roles."""
        f2, f3, f4 = (maps[name] for name in self.maps)
        return {"mid": torch.cat([resize(f2, f3.shape[-2:]), f3], dim=1), "f4": f4}

    def embed(self, features: Features, role: Role) -> Features:
        """As in Method."""
        reduce = self.reduce_query if role == "query" else self.reduce_support
        return {"reduced": resize(reduce(features["mid"]), self.feature_size), "f4": features["f4"]}

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in Method; maps, masks and prototypes are averaged over the shots."""
        reduced = support["reduced"].unflatten(0, masks.shape[:2])
        mask = foreground(masks, self.feature_size, reduced.dtype)  # (B, K, 1, f, f)
        prototype = masked_average(reduced, mask).mean(1)[..., None, None]
        s, m = (reduced * mask).mean(1), mask.mean(1)
        s = self.merge_support(stack_maps(s, prototype, m)).permute(0, 2, 3, 1)
        memories = []
        for number, block in enumerate(self.blocks, 1):
            assert isinstance(block, Block)
            memories.append(block.remember(s, m.permute(0, 2, 3, 1)))
            s = block.encode_support(s, memories[-1]) if number < len(self.blocks) else s
        f4 = F.normalize(resize(support["f4"], self.feature_size).flatten(2), dim=1, eps=1e-7)
        f4, mask = f4.unflatten(0, masks.shape[:2]), mask.flatten(2).unsqueeze(-1)
        return {"prototype": prototype, "f4": f4, "mask": mask, "memories": memories}

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in Method, `(B, 2, f, f)`."""
        q = query["reduced"]
        q = stack_maps(q, state["prototype"], self.prior(query, state))
        q = self.merge_query(q).permute(0, 2, 3, 1)  # (B, f, f, C)
        for block, memory in zip(self.blocks, state["memories"], strict=True):
            q = block(q, memory)
        logits = self.decoder(self.norm(q).permute(0, 3, 1, 2))
        return Scores(logits, logits)

    @torch.no_grad()
    def prior(self, query: Features, state: State) -> Tensor:
        """How much mask every position attends to in the supports, averaged over the shots, `(B, 1, f, f)`."""
        unit = F.normalize(query["f4"].flatten(2), dim=1, eps=1e-7).transpose(1, 2)  # (B, h * w, C4)
        shots = zip(state["f4"].unbind(1), state["mask"].unbind(1), strict=True)
        seen = torch.cat([(unit @ known).softmax(-1) @ mask for known, mask in shots], dim=2).mT  # (B, K, h * w)
        return resize(min_max(seen.unflatten(2, query["f4"].shape[-2:])), self.feature_size).mean(1, keepdim=True)

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """As in Method."""
        return {"dice": dice_loss(scores.final, truth)}

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """What trains outside the blocks, one group a module, in the published order."""
        first = [self.reduce_query, self.reduce_support, self.merge_query, self.merge_support]
        return [list(module.parameters()) for module in (*first, *self.decoder.children())]

    def optimizers(self, cfg: Config) -> dict[str, ScheduledOptimizer]:
        """AdamW with a constant rate for the blocks, SGD for the rest."""
        rest = make_sgd(self.parameter_groups(), cfg.momentum, cfg.weight_decay)
        trunk = [*self.blocks.parameters(), *self.norm.parameters()]
        return {
            "rest": ScheduledOptimizer(rest, cfg.base_lr, cfg.power, cfg.index_split),
            "trunk": ScheduledOptimizer(AdamW(trunk, lr=cfg.trunk_lr, weight_decay=cfg.trunk_weight_decay)),
        }

    def explain(self, query: Features, state: State) -> Explanation:
        """Scores with the prior and the probability."""
        scores, maps = super().explain(query, state)
        return Explanation(scores, {"prior: like the object": self.prior(query, state)[:, 0], **maps})

"""HMNet from images to scores: features -> embed -> trunk -> decode -> ensemble.

Source: "Hybrid Mamba for Few-Shot Segmentation", NeurIPS 2024 (arXiv 2409.19613).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.loss import ITEM_MEANS, episode_loss
from model.methods.method import STEADY_BASE_LEARNER, Explanation, Features, Method, Role, Scores, State
from model.optim import ScheduledOptimizer, make_sgd, make_trunk_adamw
from model.parts.base_learner import BaseLearner
from model.parts.decoder import Decoder
from model.parts.ensemble import Ensemble, base_map, gram, scene_difference
from model.parts.fusion import build_trunk
from model.parts.mamba import HybridBlock, SupportMemory
from model.parts.maps import three_levels
from model.parts.prior import foreground, level_prior, masked_average, prototypes, select_prior
from model.parts.reduction import reduction
from model.parts.trunk import Trunk
from model.released import DECODER, ENSEMBLE, FROZEN, NameTable
from model.resize import resize
from model.tensors import stack_maps
from util.config import Config

PRIOR_GAIN = 10  # of the released code; the paper does not mention it
LEVELS = ("f4", "f5")  # features that priors are made of, as far as they are there
BLOCK, BRANCH, MAMBA = r"trunk\.blocks\.(\d+)", r"(?:(q)uery|(s)upport)", r"mamba.layers.0.blocks.\1"


class Embedding(nn.Module):
    """Query and support embedding (paper, section 4.1). Args: channels of its maps, width C, priors, dropout."""

    def __init__(self, channels: int, width: int, priors: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.query, self.support = (reduction(channels, width, dropout) for _ in range(2))
        self.merge_query = nn.Conv2d(2 * width + priors, width, 1, bias=False)
        self.merge_support = nn.Conv2d(2 * width + 1, width, 1, bias=False)


class HMNet(Method):
    """Segments in the query the class that the support masks show.

    Args: frozen backbone and the names of three maps of it, f2, f3 and f4; frozen base learner with the ensemble, or
    None for the paper's rows without; embedding, trunk and decoder of one width C; feature size f.

    Features: `mid`, f2 and f3 (B, C2 + C3, h, w); `f4`; with the ensemble `f5` (B, 512, h4, w4) and `gram` (B, C2, C2).
    Embedded: `reduced` (B, C, f, f) instead of `mid`. State: `prototype` (B, C, 1, 1); `prototypes` per level
    (B, K, 2, channels), foreground and background; `gram` (B, K, C2, C2); `memories`, one per trunk block.
    """

    released_names: ClassVar[NameTable] = (
        *FROZEN,
        (r"base_learner\.classifier", r"base_learner.2"),
        (r"embedding\.query\.0", r"down_query.0"),
        (r"embedding\.support\.0", r"down_supp.0"),
        (r"embedding\.merge_query", r"init_merge_query.0"),
        (r"embedding\.merge_support", r"init_merge_supp.0"),
        (r"trunk\.norm", r"mamba.norm"),
        (rf"{BLOCK}\.scan\.x_proj", rf"{MAMBA}.self_attention.x_proj_weight"),
        (rf"{BLOCK}\.scan\.dt_proj", rf"{MAMBA}.self_attention.dt_projs_weight"),
        (rf"{BLOCK}\.scan\.dt_bias", rf"{MAMBA}.self_attention.dt_projs_bias"),
        (rf"{BLOCK}\.scan\.A_log", rf"{MAMBA}.self_attention.A_logs"),
        (rf"{BLOCK}\.scan\.skip", rf"{MAMBA}.self_attention.Ds"),
        (rf"{BLOCK}\.{BRANCH}\.mlp\.0", rf"{MAMBA}.mlp_\2\3.fc1"),
        (rf"{BLOCK}\.{BRANCH}\.mlp\.2", rf"{MAMBA}.mlp_\2\3.fc2"),
        (rf"{BLOCK}\.{BRANCH}\.conv", rf"{MAMBA}.self_attention.conv2d_\2\3"),
        (rf"{BLOCK}\.{BRANCH}\.(\w+_proj)", rf"{MAMBA}.self_attention.\4_\2\3"),
        (rf"{BLOCK}\.out_norm", rf"{MAMBA}.self_attention.out_norm"),
        (rf"{BLOCK}\.(ln_\d)", rf"{MAMBA}.\2"),
        *DECODER,
        *ENSEMBLE,
    )
    flattened_names: ClassVar[tuple[str, ...]] = ("scan.A_log", "scan.skip")  # (4, D, ...) here, (4 * D, ...) there
    item_means = ITEM_MEANS
    corrections = STEADY_BASE_LEARNER
    joined: ClassVar[slice] = slice(2)  # of the maps: what the embedding takes
    priors: ClassVar[tuple[str, ...]] = (  # captions
        "like the object",
        "more like the object than like its surroundings",
    )
    dropout: ClassVar[float] = 0.5  # of whole channels of the embedding

    def __init__(
        self,
        backbone: Backbone,
        maps: tuple[str, ...],
        base_learner: BaseLearner | None,
        embedding: Embedding,
        trunk: Trunk,
        decoder: Decoder,
        ensemble: Ensemble | None = None,
        feature_size: int = 64,
    ) -> None:
        super().__init__(backbone, maps, base_learner, ensemble.shot if ensemble else None)
        assert embedding.channels == sum(backbone.channels(maps[self.joined])), "the embedding takes the joined maps"
        assert embedding.width == trunk.width == decoder.width, "embedding, trunk and decoder have one width"
        assert (base_learner is None) == (ensemble is None), "the ensemble adjusts by the base learner"
        self.feature_size = feature_size
        self.embedding, self.trunk, self.decoder, self.ensemble = embedding, trunk, decoder, ensemble

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "HMNet":
        """As in Method."""
        maps = cls.levels(backbone)
        shot = cfg.trained_shot or cfg.shot
        return cls(
            backbone,
            maps,
            base_learner,
            Embedding(sum(backbone.channels(maps[cls.joined])), cfg.width, len(cls.priors), cls.dropout),
            cls.make_trunk(cfg),
            Decoder(cfg.width),
            Ensemble(shot, cfg.kshot_trans_dim, cfg.kshot_unsort) if base_learner else None,
            cfg.feature_size,
        )

    @staticmethod
    def levels(backbone: Backbone) -> tuple[str, ...]:
        """The names of the maps that it takes."""
        return three_levels(backbone)

    @staticmethod
    def make_trunk(cfg: Config) -> Trunk:
        """The trunk of the blocks that `fusion` names."""
        return build_trunk(cfg)

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method; the same for both roles."""
        f2, f3, f4 = (maps[name] for name in self.maps)
        f2 = resize(f2, f3.shape[-2:])
        features = {"mid": torch.cat([f2, f3], dim=1), "f4": f4}
        if self.base_learner is not None:
            features |= {"f5": self.base_learner.features(f4), "gram": gram(f2)}
        return features

    def embed(self, features: Features, role: Role) -> Features:
        """Features reduced to the trunk's width and size, for one of the two roles."""
        reduce = self.embedding.query if role == "query" else self.embedding.support
        others = {name: x for name, x in features.items() if name != "mid"}
        return {"reduced": resize(reduce(features["mid"]), self.feature_size), **others}

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in Method: prototypes, Gram matrices and the trunk's memories."""
        shots = masks.shape[:2]
        mask = foreground(masks, self.feature_size, support["reduced"].dtype)
        mid = support["reduced"].unflatten(0, shots)
        prototype = masked_average(mid, mask).mean(1)[..., None, None]  # (B, C, 1, 1)
        support_map = (mid * mask).mean(1)  # (B, C, f, f)
        s = stack_maps(support_map, prototype, mask.mean(1))
        s = self.embedding.merge_support(s).permute(0, 2, 3, 1)  # (B, f, f, C)
        state: State = {
            "prototype": prototype,
            "prototypes": {
                name: prototypes(support[name].unflatten(0, shots), mask) for name in LEVELS if name in support
            },
            "memories": self.trunk.encode_support(s),
        }
        if self.ensemble is not None:
            state["gram"] = support["gram"].unflatten(0, shots)[:, self.ensemble.chosen(shots[1])]
        return state

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in Method, (B, 2, f, f)."""
        prior = PRIOR_GAIN * self.prior(query, state)
        q = stack_maps(query["reduced"], state["prototype"], prior)
        q = self.embedding.merge_query(q).permute(0, 2, 3, 1)  # (B, f, f, C)
        q = self.trunk(q, state["memories"])
        meta = self.decoder(q.permute(0, 3, 1, 2))
        return self.adjust(meta, query, state, episode_class)

    @torch.no_grad()
    def prior(self, query: Features, state: State) -> Tensor:
        """Foreground and discriminative prior masks, `(B, priors, f, f)`."""
        known = state["prototypes"]
        return select_prior([level_prior(query[name], known[name], self.feature_size) for name in known])

    def adjust(self, meta: Tensor, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """The ensemble: meta logits `(B, 2, f, f)` to scores; the same tensor without a base learner."""
        if self.base_learner is None or self.ensemble is None:
            return Scores(meta, meta)
        with torch.no_grad():
            logits = self.base_learner.classify(resize(query["f5"], self.feature_size))
            base = base_map(logits, episode_class)
            difference = scene_difference(query["gram"], state["gram"])
        return Scores(meta, self.ensemble(meta, base, difference), logits)

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """As in Method; the base learner's own loss is not part of HMNet's."""
        return episode_loss(scores, truth)

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """What trains outside the trunk, one group per module in the released optimiser's order."""
        parts = [part for part in (self.embedding, self.decoder, self.ensemble) if part is not None]
        return [list(module.parameters()) for part in parts for module in part.children()]

    def optimizers(self, cfg: Config) -> dict[str, ScheduledOptimizer]:
        """AdamW with a constant rate for the trunk, unless it is empty, SGD for the rest (paper, section 5.1)."""
        rest = make_sgd(self.parameter_groups(), cfg.momentum, cfg.weight_decay)
        made = {"rest": ScheduledOptimizer(rest, cfg.base_lr, cfg.power, cfg.index_split)}
        if len(self.trunk.blocks):
            trunk = make_trunk_adamw(self.trunk, cfg.trunk_lr, cfg.batch_size, cfg.trunk_weight_decay)
            made["trunk"] = ScheduledOptimizer(trunk)
        return made

    def explain(self, query: Features, state: State) -> Explanation:
        """Scores with the priors, the ensemble's probabilities, and what QIM adds in each hybrid block."""
        with InterceptionNorms(self.trunk) as norms:
            scores = self.score(query, state)
        maps = {f"prior: {name}": x for name, x in zip(self.priors, self.prior(query, state).unbind(1), strict=True)}
        return Explanation(scores, maps | scores.probabilities() | norms.maps)


class InterceptionNorms:
    """While it is entered, notes the norm over the channels of what QIM adds in each hybrid block (section 4.4)."""

    def __init__(self, trunk: Trunk) -> None:
        self.maps: dict[str, Tensor] = {}  # by caption, (B, f, f)
        self.blocks = {
            block: f"QIM in block {number}: norm of what it adds"
            for number, block in enumerate(trunk.blocks, 1)
            if isinstance(block, HybridBlock) and block.qim != "none"
        }

    def __enter__(self) -> "InterceptionNorms":
        self.hooks = [block.register_forward_pre_hook(self._note) for block in self.blocks]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, block: nn.Module, inputs: tuple[Tensor, SupportMemory]) -> None:
        assert isinstance(block, HybridBlock)
        q, memory = inputs
        u = block.query.scan_input(block.ln_1(q))
        added = block.intercepted(u, block.scan.project(u.flatten(1, 2)), memory.state)
        self.maps[self.blocks[block]] = added.norm(dim=-1)

"""HDMNet: a pyramid in which query and support attend to themselves, and from coarse to fine the query to the support.

Source: "Hierarchical Dense Correlation Distillation for Few-Shot Segmentation", CVPR 2023 (arXiv 2303.14652).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from typing_extensions import Self

from model.backbone import Backbone
from model.loss import ensemble_losses
from model.methods.method import STEADY_BASE_LEARNER, Explanation, Features, Method, Role, Scores, State
from model.optim import ScheduledOptimizer
from model.parts.base_learner import BaseLearner
from model.parts.ensemble import Ensemble, base_map, gram, scene_difference
from model.parts.maps import three_levels
from model.parts.prior import foreground, masked_average, max_cosine_prior
from model.parts.pyramid import Matching, Pyramid, conv_bn
from model.parts.reduction import concat_maps, reduction
from model.released import ENSEMBLE, FROZEN, NameTable
from model.resize import resize
from model.tensors import stack_maps
from util.config import Config
from util.image import ImageRule

REDUCED = 256  # channels of reduced query and support
WIDTH = 64  # of the pyramid
PRIOR_GAIN = 10
PRIORS = ("f5", "f4")  # features that priors are made of
MIX = "transformer.mix_transformer"
LAYER_NAMES = (  # of an encoder layer's parts
    (r"attention\.query", r"attn.attn.linear_q"),
    (r"attention\.key", r"attn.attn.linear_k"),
    (r"attention\.value", r"attn.attn.linear_v"),
    (r"attention\.out", r"attn.attn.linear_o"),
    (r"attention\.reduce", r"attn.sr"),
    (r"attention\.norm", r"attn.norm"),
    (r"mlp", r"ffn.layers"),
    (r"norm1", r"norm1"),
    (r"norm2", r"norm2"),
)


class HDMNet(Method):
    """Segments by correlations of query and support at three scales, each taught by the coarser one.

    Args: backbone and the names of f2, f3 and f4; base learner; ensemble.

    Features: of a query `mid`, f3 and f2 (B, C3 + C2, f, f), `f4`, `f5` (B, 512, f, f) and `gram` (B, C2, C2); of a
    support the `images` alone, as the backbone sees them under their masks (quirk). Embedded: `reduced` (B, 256, f, f)
    instead of `mid`. State: `prototype` (B, 256, 1, 1); `memories` by stage; f5 and f4 as `levels` (B, K, C, f, f) and
    their `mask` (B, K, 1, f, f); `gram` (B, K, C2, C2).
    """

    uses_base_learner = True
    images = ImageRule(augment="squash")  # instead of crops (quirk)
    features_by_role: ClassVar[bool] = True
    item_means = ("distillation",)
    released_names: ClassVar[NameTable] = (
        *FROZEN,
        (r"base_learner\.classifier", r"base_learnear.2"),
        (r"reduce_query", r"down_query"),
        (r"reduce_support", r"down_supp"),
        (r"merge_query", r"query_merge"),
        (r"merge_support", r"supp_merge"),
        *((rf"pyramid\.stages\.(\d)\.([12])\.{a}", rf"{MIX}.down_sample_layers.\1.\2.{b}") for a, b in LAYER_NAMES),
        *((rf"matches\.(\d)\.layer\.{a}", rf"{MIX}.match_layers.\1.0.{b}") for a, b in LAYER_NAMES),
        (r"pyramid\.stages", rf"{MIX}.down_sample_layers"),
        (r"matches\.(\d)\.merge\.0", rf"{MIX}.match_layers.\1.1.conv"),
        (r"matches\.(\d)\.merge\.1", rf"{MIX}.match_layers.\1.1.bn"),
        (r"matches\.(\d)\.parse", rf"{MIX}.parse_layers.\1"),
        (r"classifier", rf"{MIX}.cls"),
        *ENSEMBLE,
    )
    corrections = STEADY_BASE_LEARNER | {
        "cropped_images": "training images are cropped, as for the other methods; they are squashed",
        "own_statistics": "its own batch norms collect statistics in training; they only scale and shift",
        "trained_shot_weights": "the weights over shots learn; they stay as initialised",
        "aligned_corners": "maps of the decoder and targets of the distillation are resized with aligned corners",
    }
    base_learner: BaseLearner

    def __init__(
        self, backbone: Backbone, maps: tuple[str, ...], base_learner: BaseLearner, ensemble: Ensemble
    ) -> None:
        super().__init__(backbone, maps, base_learner, ensemble.shot)
        channels = sum(backbone.channels(maps[:2]))
        self.reduce_query, self.reduce_support = reduction(channels, REDUCED), reduction(channels, REDUCED)
        self.merge_query = nn.Sequential(nn.Conv2d(2 * REDUCED + len(PRIORS), WIDTH, 1, bias=False), nn.ReLU())
        self.merge_support = nn.Sequential(nn.Conv2d(2 * REDUCED, WIDTH, 1, bias=False), nn.ReLU())
        self.pyramid = Pyramid(WIDTH)
        self.matches = nn.ModuleList(Matching(WIDTH, len(PRIORS)) for _ in self.pyramid.stages)
        self.classifier = conv_bn(WIDTH, 2)
        self.ensemble = ensemble

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "HDMNet":
        """As in Method."""
        assert base_learner is not None, "has_base_learner says so"
        ensemble = Ensemble(cfg.trained_shot or cfg.shot, cfg.kshot_trans_dim, cfg.kshot_unsort)
        model = cls(backbone, three_levels(backbone), base_learner, ensemble)
        if ensemble.shot_weights is not None:  # the published optimiser leaves them out (quirk)
            ensemble.shot_weights.requires_grad_("trained_shot_weights" in cfg.corrections)
        return model

    def train(self, mode: bool = True) -> Self:
        """As in Method; also its own batch norms never collect statistics, and only scale and shift (quirk)."""
        super().train(mode)
        for module in self.modules() if "own_statistics" not in self.corrected else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @torch.no_grad()
    def features(self, images: Tensor | Mapping[str, Tensor], role: Role) -> Features:
        """As in Method; of a support nothing can be computed without its mask."""
        if role == "query":
            return super().features(images, role)
        assert isinstance(images, Tensor), "a support's maps are those of its masked image"
        return {"images": images}

    def maps_in(self, role: Role) -> tuple[str, ...]:
        """None of a support's whole image."""
        return self.maps if role == "query" else ()

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method; the same for both roles."""
        f2, f3, f4 = (maps[name] for name in self.maps)
        mid = concat_maps(f3, f2)  # f3 first (quirk)
        return {"mid": mid, "f4": f4, "f5": self.base_learner.features(f4), "gram": gram(mid[:, f3.shape[1] :])}

    def embed(self, features: Features, role: Role) -> Features:
        """As in Method; a support waits for its mask."""
        if role == "support":
            return features
        return {"reduced": self.reduce_query(features["mid"]), **{key: features[key] for key in (*PRIORS, "gram")}}

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in Method; the backbone sees the object alone, on the mean colour."""
        shots = masks.shape[:2]
        visible = (masks == 1).flatten(0, 1).unsqueeze(1)
        found = super().features(support["images"] * visible, "query")  # of masked images, as of any
        reduced = self.reduce_support(found["mid"])  # (B * K, 256, f, f)
        size = reduced.shape[-2:]
        prototypes = masked_average(reduced, foreground(masks, size, reduced.dtype).flatten(0, 1))[..., None, None]
        tokens = self.merge_support(stack_maps(reduced, prototypes))
        return {
            "prototype": prototypes.unflatten(0, shots).mean(1),
            "memories": [match.remember(x, masks) for match, x in zip(self.scales, self.pyramid(tokens), strict=True)],
            "levels": {name: found[name].unflatten(0, shots) for name in PRIORS},
            "mask": F.interpolate((masks == 1).to(reduced.dtype), found["f4"].shape[-2:]).unsqueeze(2),
            "gram": found["gram"].unflatten(0, shots)[:, self.ensemble.chosen(shots[1])],
        }

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in Method, `(B, 2, f, f)`; `auxiliary` holds the correlations `(B, h, w)`, from coarse to fine."""
        q, priors = query["reduced"], self.priors(query, state)
        tokens = self.merge_query(stack_maps(q, state["prototype"], PRIOR_GAIN * priors))
        meta, correlations = self.decode(self.pyramid(tokens), state, priors)
        with torch.no_grad():
            base = self.base_learner.classify(query["f5"])
            known = base_map(resize(base, meta.shape[-2:]), episode_class)
            difference = scene_difference(query["gram"], state["gram"])
        return Scores(meta, self.ensemble(meta, known, difference), base, correlations)

    @property
    def aligned(self) -> bool:
        """Whether corners are aligned where the published code does not (quirk)."""
        return "aligned_corners" in self.corrected

    @property
    def scales(self) -> list[Matching]:
        """The matching of every stage, from fine to coarse."""
        return [cast(Matching, match) for match in self.matches]

    def priors(self, query: Features, state: State) -> Tensor:
        """The largest cosines with the object, of f5 and f4, means over the shots, not normalised: `(B, 2, f, f)`."""
        levels, mask = state["levels"], state["mask"]
        size = query["reduced"].shape[-2:]
        cosines = [max_cosine_prior(query[name], levels[name], mask, normalise=False).mean(1) for name in PRIORS]
        return resize(torch.stack(cosines, dim=1), size)

    def decode(self, stages: list[Tensor], state: State, priors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The query's maps `(B, h, w, C)` to meta logits `(B, 2, f, f)` and correlations, from coarse to fine."""
        z, correlations = None, []
        for match, q, memory in [*zip(self.scales, stages, state["memories"], strict=True)][::-1]:
            y, correlation = match(q, memory, priors)
            if z is None:
                z = F.relu(match.parse(y))
            else:
                z = resize(z, y.shape[-2:], self.aligned)
                z = z + F.relu(match.parse(y + z))
            correlations.append(correlation)
        return self.classifier(z), tuple(correlations)

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """As in Method: BAM's, and the distillation."""
        taught = distillation(scores.auxiliary, truth, self.aligned) / len(scores.auxiliary)
        return ensemble_losses(scores, truth, base_truth) | {"distillation": taught}

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The pyramid's and the decoder's, then one group a module, in the published order."""
        transformer = nn.ModuleList([self.pyramid, self.matches, self.classifier])
        reductions = [self.reduce_support, self.reduce_query, self.merge_support, self.merge_query]
        modules = [transformer, *reductions, *self.ensemble.children()]
        groups = [[p for p in module.parameters() if p.requires_grad] for module in modules]
        return [group for group in groups if group]

    def optimizers(self, cfg: Config) -> dict[str, ScheduledOptimizer]:
        """AdamW with a polynomial rate; with `index_split` 0 all but the transformer learn ten times as fast."""
        groups = [{"params": group} for group in self.parameter_groups()]
        adamw = AdamW(groups, cfg.base_lr, weight_decay=cfg.weight_decay)
        return {"all": ScheduledOptimizer(adamw, cfg.base_lr, cfg.power, cfg.index_split)}

    def explain(self, query: Features, state: State) -> Explanation:
        """Scores with the priors, the finest correlations, and the meta and base learners' probabilities."""
        scores = self.score(query, state)
        f5, f4 = self.priors(query, state).unbind(1)
        maps = {
            "prior: largest cosine of stage 4": f4,
            "prior: largest cosine of the base learner's feature": f5,
            "correlations at the finest scale": scores.auxiliary[-1],
            **scores.probabilities(),
        }
        return Explanation(scores, maps)


def distillation(correlations: Sequence[Tensor], truth: Tensor, aligned: bool = False) -> Tensor:
    """Each scale's correlations are taught by the coarser one's, the coarsest by the truth (paper, section 3.4).

    The sum over the scales of KL(teacher, student) over positions, a mean over the batch. `correlations (B, h, w)` from
    coarse to fine; `truth (B, H, W)`, of which 255 counts as background.
    """
    total = truth.new_zeros((), dtype=torch.float32)
    teacher = torch.where(truth == 1, 1.0, -1e9)
    for student in (x.float() for x in correlations):  # as half precision has neither 1e-12 nor 1e9
        teacher = resize(teacher.unsqueeze(1), student.shape[-2:], aligned)
        t, s = (x.flatten(1).softmax(1) for x in (teacher, student))
        total = total + (t * ((t + 1e-12).log() - (s + 1e-12).log())).sum(1).mean()
        teacher = student.detach()
    return total

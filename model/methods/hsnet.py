"""HSNet: 4D convolutions over the cosines of every query position with every support position.

Source: "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021 (arXiv 2104.01538).
"""

from itertools import repeat
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam

from model.backbone import Backbone
from model.loss import cross_entropy
from model.methods.method import IGNORED_PIXELS, Features, Method, Scores
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

STRIDES = {"2": (4, 4, 2), "3": (4, 2, 2), "4": (2, 2, 2)}  # over the support's positions


class CenterPivotConv(nn.Module):
    """A 4D convolution as the sum of two 2D ones: over the query's positions and over the support's (section 4.2).

    Both have a bias. Args: channels in and out, kernel size, and the stride over the support's positions.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.query = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.support = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, h, w, hs, ws)` to `(B, outputs, h, w, hs / stride, ws / stride)`, sizes rounded up."""
        kept = x[..., :: self.stride, :: self.stride]  # support positions at which the query's plane is convolved
        planes = kept.permute(0, 4, 5, 1, 2, 3)  # (B, hs', ws', C, h, w)
        query = self.query(planes.flatten(0, 2)).unflatten(0, planes.shape[:3]).permute(0, 3, 4, 5, 1, 2)
        planes = x.permute(0, 2, 3, 1, 4, 5)  # (B, h, w, C, hs, ws)
        return query + self.support(planes.flatten(0, 2)).unflatten(0, planes.shape[:3]).permute(0, 3, 1, 2, 4, 5)


class Learner(nn.Module):
    """Correlations to logits (section 4.2 and 4.3). Args: how many correlations every stage has."""

    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__()
        self.encoder4, self.encoder3, self.encoder2 = (_encoder(counts[stage], stage) for stage in ("4", "3", "2"))
        self.encoder4to3, self.encoder3to2 = _mixer(), _mixer()
        self.decoder1 = conv3x3_relu(128, 128, 64)
        self.decoder2 = conv3x3_relu(64, 64, 2, last_relu=False)

    def forward(self, correlations: dict[str, Tensor]) -> Tensor:
        """Correlations `(B, n, h, w, hs, ws)` by stage to logits `(B, 2, 2h, 2w)`, h x w the size of stage 2."""
        z = self.encoder4(correlations["4"])
        z = _add_resized(z, self.encoder3(correlations["3"]))
        z = self.encoder4to3(z)
        z = _add_resized(z, self.encoder2(correlations["2"]))
        z = self.encoder3to2(z).mean((-2, -1))  # (B, 128, h, w)
        z = self.decoder1(z)
        return self.decoder2(resize(z, [2 * side for side in z.shape[-2:]]))


class Votes(Scores):
    """The scores of several shots, each alone in `auxiliary`, of which `meta` and `final` are the vote."""

    of_all = False  # whether a pixel needs half of all shots' votes, not of the most that any pixel of its image gets

    @classmethod
    def of(cls, shots: tuple[Tensor, ...]) -> "Votes":
        """The vote on logits `(B, 2, h, w)`, one tensor a shot, as scores that are larger where it is won.

        A pixel is foreground with half of the votes that the image's pixels get at most (quirk: where none has more
        than three of five, two are enough).
        """
        votes = torch.stack([logits.argmax(1) for logits in shots]).sum(0).to(shots[0].dtype)  # (B, h, w)
        largest = votes.amax((1, 2), keepdim=True).clamp(min=len(shots) if cls.of_all else 1)
        final = torch.stack([(largest / 2 - 1 / 4).expand_as(votes), votes], dim=1)
        return cls(final, final, None, shots)

    def resize(self, size: Any) -> "Votes":
        """As in Scores: every shot is resized, then they vote."""
        return self.of(tuple(resize(logits, size) for logits in self.auxiliary))

    def at(self, *sizes: Any) -> Tensor:
        """As in Scores: every shot is resized, then they vote."""
        return self.of(tuple(Scores(logits, logits).at(*sizes) for logits in self.auxiliary)).final

    def margin_at(self, *sizes: Any) -> Tensor:
        """As in Scores, in votes."""
        background, foreground = self.at(*sizes).unbind(1)
        return foreground - background


class Majority(Votes):
    """The same where the quirk is corrected."""

    of_all = True


class HSNet(Method):
    """Every shot alone is matched with the query and segments it; the shots vote.

    Args: a plain backbone; the names of its maps by stage.

    Features: the maps. State: the maps under the masks, unit vectors, `(B, K, C, h, w)`.
    """

    uses_base_learner = False
    images = ImageRule(resample="antialias", augment="none", keep_ignored=False)
    released_names: ClassVar[NameTable] = (
        (r"backbone\.layer0\.0", r"backbone.conv1"),
        (r"backbone\.layer0\.1", r"backbone.bn1"),
        (r"learner\.encoder(\w+)\.(\d)\.query", r"hpn_learner.encoder_layer\1.\2.conv1"),
        (r"learner\.encoder(\w+)\.(\d)\.support", r"hpn_learner.encoder_layer\1.\2.conv2"),
        (r"learner\.encoder(\w+)", r"hpn_learner.encoder_layer\1"),
        (r"learner", r"hpn_learner"),
    )
    unused_names: ClassVar[tuple[str, ...]] = ("backbone.fc.", "backbone.classifier.")
    item_means = ("cross_entropy",)  # as ignored pixels count
    corrections = IGNORED_PIXELS | {
        "majority_of_shots": "foreground needs half of the shots' votes; it needs half of the most votes in the image"
    }

    def __init__(self, backbone: Backbone, stages: dict[str, tuple[str, ...]]) -> None:
        super().__init__(backbone, tuple(name for stage in STAGES for name in stages[stage]))
        self.stages = stages
        self.learner = Learner({stage: len(names) for stage, names in stages.items()})

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "HSNet":
        """As in Method; UserError for a size at which the stages' support positions do not fit together."""
        for key in ("train_h", "val_size"):
            size, floors = getattr(cfg, key), cfg.backbone_name == "vgg16"  # whose pools drop what does not fill a cell
            if floors and -(-(size // 8) // 32) != -(-(size // 32) // 8):
                raise UserError(f"{key}: {size} does not suit HSNet with vgg16; take a multiple of 32, such as 384")
        return cls(backbone, block_maps(backbone, cls.__name__))

    @classmethod
    def configured(cls, cfg: Config) -> Config:
        """As in Method: torchvision's ResNet or VGG-16."""
        return plain_backbone(cfg)

    def support_state(self, support: Features, masks: Tensor) -> dict[str, Tensor]:
        """As in Method; the mask is resized to each map."""
        state = {}
        for name, x in support.items():
            x = x.unflatten(0, masks.shape[:2])
            mask = resize((masks == 1).to(x.dtype), x.shape[-2:]).unsqueeze(2)
            state[name] = _unit(x * mask)
        return state

    def score(self, query: Features, state: dict[str, Tensor], episode_class: Tensor | None = None) -> Scores:
        """As in Method, `(B, 2, S / 4, S / 4)`; Votes for more than one shot."""
        shots = next(iter(state.values())).shape[1]
        logits = [self.learner(self.correlations(query, state, shot)) for shot in range(shots)]
        vote = Majority if "majority_of_shots" in self.corrected else Votes
        return Scores(logits[0], logits[0]) if shots == 1 else vote.of(tuple(logits))

    @torch.no_grad()
    def correlations(self, query: Features, state: dict[str, Tensor], shot: int) -> dict[str, Tensor]:
        """Cosines of all positions with those of one shot, not below 0: `(B, maps, h, w, hs, ws)` by stage."""
        return {
            stage: torch.stack([correlate(_unit(query[name]), state[name][:, shot]) for name in names], dim=1)
            for stage, names in self.stages.items()
        }

    def losses(self, scores: Scores, truth: Tensor, base_truth: Tensor | None = None) -> dict[str, Tensor]:
        """As in Method: the mean over all pixels, also those to ignore (quirk), and over the shots."""
        shots = scores.auxiliary or (scores.final,)
        loss = cross_entropy if "ignored_pixels" in self.corrected else all_pixel_cross_entropy
        return {"cross_entropy": loss(torch.cat(shots), torch.cat([*repeat(truth, len(shots))]))}

    def optimizers(self, cfg: Config) -> dict[str, ScheduledOptimizer]:
        """Adam with a constant rate."""
        return {"all": ScheduledOptimizer(Adam(self.learner.parameters(), cfg.base_lr))}


def correlate(query: Tensor, support: Tensor) -> Tensor:
    """Products of all positions of `(B, C, h, w)` and `(B, C, hs, ws)`, not below 0: `(B, h, w, hs, ws)`."""
    products = query.flatten(2).transpose(1, 2) @ support.flatten(2)
    return products.relu_().unflatten(2, support.shape[-2:]).unflatten(1, query.shape[-2:])


def _unit(x: Tensor) -> Tensor:
    """Vectors along the channels, the third dimension from the end, of unit length, but for what is next to zero."""
    return x / (x.norm(dim=-3, keepdim=True) + 1e-5)


def _add_resized(coarse: Tensor, fine: Tensor) -> Tensor:
    """The sum `(B, C, h, w, hs, ws)`, once the coarse one's query positions are as many as the fine one's."""
    planes = coarse.permute(0, 4, 5, 1, 2, 3)  # (B, hs, ws, C, h, w)
    resized = resize(planes.flatten(0, 2), fine.shape[2:4]).unflatten(0, planes.shape[:3])
    return resized.permute(0, 3, 4, 5, 1, 2) + fine


def _encoder(inputs: int, stage: str) -> nn.Sequential:
    """The 4D convolutions that squeeze a stage's correlations."""
    channels = (inputs, *WIDTHS)
    return conv_blocks(list(map(CenterPivotConv, channels, WIDTHS, KERNELS[stage], STRIDES[stage])))


def _mixer() -> nn.Sequential:
    """4D convolutions that keep the size."""
    return conv_blocks([CenterPivotConv(128, 128, 3) for _ in range(3)], (128,) * 3)

"""HMNet on maps of every stage of a light backbone, with what a few supports say without training among its priors."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from model.backbone import Backbone
from model.methods.hmnet import PRIOR_GAIN, HMNet
from model.methods.method import Features, Role, Scores, State
from model.optim import ScheduledOptimizer
from model.parts.maps import class_shares, positions, unit
from model.resize import resize
from model.tensors import stack_maps
from util.config import Config
from util.image import ImageRule

MARGINS = ("margin of the nearest prototype", "margin of the nearest position", "margin of the discriminant")
RIDGE = 1.0  # of the discriminant, in units of its covariance's mean diagonal
CLEAR = 0.5  # share of a position that one class takes, from which on it is an example of that class
MARGIN_GAIN = 0.3  # brings the discriminant's margins, about -1 to 1, to the size of cosines' differences


class HMNetLite(HMNet):
    """HMNet whose embedding and priors take all levels of the backbone, joined as unit vectors at the first's size.

    Besides HMNet's two there are three priors that keep their sign and size, so that an absent object is low
    everywhere: the margins of the nearest prototype, of the nearest support position, and of a linear discriminant
    fitted to all shots together. Ignored support pixels, 255, are examples of nothing.
    """

    images: ImageRule = ImageRule(fit="padded")
    corrections: ClassVar[dict[str, str]] = {}  # those of HMNet are of its base learner
    joined: ClassVar[slice] = slice(None)
    priors: ClassVar[tuple[str, ...]] = (*HMNet.priors, *MARGINS)
    dropout: ClassVar[float] = 0.1

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.shortcut = nn.Conv2d(len(MARGINS), 2, 1)
        with torch.no_grad():
            self.shortcut.weight.copy_(torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1).expand_as(self.shortcut.weight))

    @classmethod
    def has_base_learner(cls, cfg: Config) -> bool:
        """Never."""
        return False

    @staticmethod
    def levels(backbone: Backbone) -> tuple[str, ...]:
        """As in HMNet: as many as `backbone_layers` names."""
        return backbone.levels

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method; the same for both roles."""
        size = maps[self.maps[0]].shape[-2:]
        joined = unit(torch.cat([resize(unit(maps[name]), size) for name in self.maps], dim=1))
        return {"mid": joined, "f4": joined}

    def support_state(self, support: Features, masks: Tensor) -> State:
        """As in HMNet, with the examples of all shots and the discriminant."""
        state: State = super().support_state(support, masks)
        with torch.autocast(masks.device.type, enabled=False):  # half precision has no solver
            return state | examples(resize(support["f4"].float(), self.feature_size), masks)

    def score(self, query: Features, state: State, episode_class: Tensor | None = None) -> Scores:
        """As in HMNet, (B, 2, f, f), where the margins among the priors are added to the decoder's logits."""
        prior = PRIOR_GAIN * self.prior(query, state)
        q = stack_maps(query["reduced"], state["prototype"], prior)
        q = self.trunk(self.embedding.merge_query(q).permute(0, 2, 3, 1), state["memories"])  # (B, f, f, C)
        meta = self.decoder(q.permute(0, 3, 1, 2)) + self.shortcut(prior[:, -len(MARGINS) :])
        return Scores(meta, meta)

    @torch.no_grad()
    def prior(self, query: Features, state: State) -> Tensor:
        """As in HMNet, `(B, 5, f, f)`."""
        x = resize(query["f4"], self.feature_size)
        background, object_ = unit(state["prototypes"]["f4"].mean(1), -1).flip(1).unbind(1)  # (B, C) each
        prototype = torch.einsum("bchw,bc->bhw", unit(x), object_ - background)
        nearest = nearest_margin(unit(x), state["bank"], state["shares"])
        margin = torch.einsum("bchw,bc->bhw", x, state["direction"]) - state["offset"][:, None, None]
        added = torch.stack([prototype, nearest, MARGIN_GAIN * margin.clamp(-1.5, 1.5)], dim=1)
        return torch.cat([super().prior(query, state), added], dim=1)

    def optimizers(self, cfg: Config) -> dict[str, ScheduledOptimizer]:
        """AdamW with a falling rate for all."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        made = AdamW(trained, lr=cfg.base_lr, weight_decay=cfg.weight_decay)
        return {"all": ScheduledOptimizer(made, cfg.base_lr, cfg.power, index_split=0)}


@torch.no_grad()
def examples(x: Tensor, masks: Tensor) -> dict[str, Any]:
    """What supports show, of features `x (B * K, C, f, f)` and masks `(B, K, H, W)`.

    `bank (B, n, C)`, unit vectors of 2 x 2 positions, with their `shares (B, 2, n)` of background and object;
    `direction (B, C)` and `offset (B)` of the discriminant, whose margins are -1 and 1 at the class means.
    """
    shots = masks.shape[:2]
    shares = class_shares(masks, x)
    rows, weights = positions(x, shots), positions(shares, shots).transpose(1, 2)  # (B, n, C), (B, 2, n)
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-6)
    means = weights @ rows  # (B, 2, C)
    both = weights.mean(1, keepdim=True)
    covariance = (rows * both.transpose(1, 2)).transpose(1, 2) @ rows - means.transpose(1, 2) @ means / 2
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * diagonal.mean(1, keepdim=True).clamp(min=1e-6)
    difference = means[:, 1] - means[:, 0]
    solved = torch.linalg.solve(covariance + torch.diag_embed(ridge.expand_as(diagonal)), difference)
    direction = 2 * solved / (solved * difference).sum(1, keepdim=True).clamp(min=1e-6)
    return {
        "bank": unit(positions(F.avg_pool2d(x, 2), shots), -1),
        "shares": positions(F.avg_pool2d(shares, 2), shots).transpose(1, 2),
        "direction": direction,
        "offset": (direction * means.mean(1)).sum(1),
    }


def nearest_margin(x: Tensor, bank: Tensor, shares: Tensor) -> Tensor:
    """How much likelier `x (B, C, f, f)` is to its likest object example than to its likest background one, (B, f, f).

    Where no position is clearly of a class, the clearest ones are its examples.
    """
    cosine = bank @ x.flatten(2)  # (B, n, f * f)
    clear = shares >= shares.amax(2, keepdim=True).clamp(max=CLEAR)  # (B, 2, n)
    background, object_ = (cosine.masked_fill(~each.unsqueeze(2), -1).amax(1) for each in clear.unbind(1))
    return (object_ - background).unflatten(1, x.shape[-2:])

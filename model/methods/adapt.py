"""A discriminant fitted to the supports alone, and adapted to every query: needs no weights but the backbone's."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.methods.method import Explanation, Features, Method, Role, Scores
from model.parts.base_learner import BaseLearner
from model.parts.maps import image_size, stage_maps, to_size, unit
from util.config import Config
from util.image import MEAN, STD, ImageRule

RIDGE = 1.0  # added to the covariance's diagonal, in units of its mean
PROTOTYPE_SHARE = 0.5  # of the prototype's margin with one shot; with K shots a K-th of it
RICH_MAPS = 2  # so many of the last maps count for the prototype
SURE = 0.3  # margin from which a query's positions show what is object or background in it
MIN_POSITIONS = 4  # that must be so sure; else the SUREST of all are taken
SUREST = 8
TEMPERATURE = 0.07  # of the likeness by which positions of a query share their margins
SHARPNESS = 8.0  # of probabilities: margins are 0.5 at the class means
GRID_STRIDE = 8  # pixels
SHOWN_STRIDE = 8  # of the map that says where an image is shown


class Head(NamedTuple):
    """What a support set makes; all tensors begin with B."""

    means: Tensor  # (B, 2, C), of background and object
    covariance: Tensor  # (B, C, C), mean of both classes' own
    direction: Tensor  # (B, rich channels), between the prototypes of unit vectors, in units of its squared length
    share: Tensor  # (B), of the prototype's margin


class Adapt(Method):
    """Linear discriminant on unit features of every stage, mixed with the nearest prototype and refitted to the query.

    Both classes count alike in the fit, whatever the object's size. The discriminant of the supports finds positions
    of the query that are surely object or background; its means and covariance then move half-way to theirs, and both
    margins are averaged (the idea of self-support, Fan et al., ECCV 2022). In the end every position takes the mean
    margin of positions that look like it.

    Args: backbone; names of the maps that are joined, from finer to coarser.
    """

    uses_base_learner = False
    images = ImageRule(fit="padded")

    def __init__(self, backbone: Backbone, maps: tuple[str, ...]) -> None:
        super().__init__(backbone, maps)
        self.rich = sum(backbone.channels(maps)[-RICH_MAPS:])  # channels of the maps that count for the prototype

    @classmethod
    def build(cls, cfg: Config, backbone: Backbone, base_learner: BaseLearner | None) -> "Adapt":
        """As in Method."""
        return cls(backbone, stage_maps(backbone))

    @torch.no_grad()
    def features(self, images: Tensor | Mapping[str, Tensor], role: Role) -> Features:
        """As in Method: unit vectors of the maps, and `shown (B, 1, H / 8, W / 8)`, 0 in black padding."""
        found = super().features(images, role)
        if isinstance(images, Tensor):
            black = torch.from_numpy(-MEAN / STD).to(images)[:, None, None]
            shown = ((images - black).abs().amax(1, keepdim=True) > 1e-3).float()
            found["shown"] = F.max_pool2d(shown, SHOWN_STRIDE, ceil_mode=True)
        return found

    def derive(self, maps: Mapping[str, Tensor], role: Role) -> Features:
        """As in Method."""
        return {name: unit(x.float()) for name, x in maps.items()}

    @torch.no_grad()
    def support_state(self, support: Features, masks: Tensor) -> Head:
        """As in Method, from all shots together; ignored pixels, 255, and padding count for nothing."""
        shot = masks.shape[1]
        joined, shown = self._joined(support)
        rows = joined.flatten(2).unflatten(0, (-1, shot)).movedim(2, -1).flatten(1, 2)  # (B, K * h * w, C)
        parts = torch.stack([masks == 0, masks == 1], dim=2).flatten(0, 1).float()  # (B * K, 2, H, W)
        share = F.adaptive_avg_pool2d(parts, (joined.shape[-2], joined.shape[-1])) * shown  # (B * K, 2, h, w)
        weights = share.flatten(2).unflatten(0, (-1, shot)).movedim(1, 2).flatten(2)  # (B, 2, K * h * w)
        heads = [fit(*each, self.rich) for each in zip(rows, weights, strict=True)]
        means, covariances, directions = (torch.stack(part) for part in zip(*heads, strict=True))
        return Head(means, covariances, directions, means.new_full((len(means),), PROTOTYPE_SHARE / shot))

    @torch.no_grad()
    def score(self, query: Features, state: Head, episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the images' size."""
        return self._scores(torch.stack([margins[-1] for margins in self._margins(query, state)]))

    def explain(self, query: Features, state: Head) -> Explanation:
        """As in Method: the margins by the supports alone, refitted to the query, and shared among its positions."""
        margins = torch.stack([torch.stack(each) for each in self._margins(query, state)], dim=1)  # (3, B, h, w)
        names = ("shared margin", "margin refitted to the query", "margin by the supports alone")
        return Explanation(self._scores(margins[-1]), dict(zip(names, margins.flip(0), strict=True)))

    def _margins(self, query: Features, state: Head) -> list[tuple[Tensor, ...]]:
        """Of every query the margins (h, w) after each of the three steps."""
        found = []
        for number, (x, shown) in enumerate(zip(*self._joined(query), strict=True)):
            head = Head(*(part[number] for part in state))
            rows = x.flatten(1).T  # (h * w, C)
            first = first_margin(rows, head, self.rich)
            refitted = (first + refit(rows, first, shown.flatten(), head)) / 2
            steps = first, refitted, share_among_alike(x, refitted.view_as(x[0])).flatten()
            found.append(tuple(step.view_as(x[0]) for step in steps))
        return found

    def _joined(self, features: Features) -> tuple[Tensor, Tensor]:
        """All maps at the grid's size `(B, C, h, w)`, and the share `(B, 1, h, w)` of each position that is shown."""
        size = features[grid_map(self.backbone, self.maps)].shape[-2:]
        aligned = bool(self.backbone.size_offset)
        joined = torch.cat([to_size(features[name], size, aligned) for name in self.maps], dim=1)
        shown = features.get("shown", joined.new_ones(len(joined), 1, 1, 1))
        return joined, F.interpolate(shown, size=size, mode="nearest")

    def _scores(self, margin: Tensor) -> Scores:
        """Of margins (B, h, w)."""
        size = image_size(self.backbone, grid_map(self.backbone, self.maps), margin.shape[-2:])
        logit = to_size(SHARPNESS / 2 * margin.unsqueeze(1), size, bool(self.backbone.size_offset))
        final = torch.cat([-logit, logit], dim=1)
        return Scores(final, final)


def fit(rows: Tensor, weights: Tensor, rich: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means (2, C), covariance (C, C) and the prototypes' direction (rich) of rows (n, C), weights (2, n)."""
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    means = weights @ rows
    covariance = covariance_of(rows, weights, means)
    background, object_ = F.normalize(weights @ F.normalize(rows[:, -rich:], dim=1), dim=1)
    direction = object_ - background
    return means, covariance, direction / direction.square().sum().clamp(min=1e-6)


def covariance_of(rows: Tensor, weights: Tensor, means: Tensor) -> Tensor:
    """Mean of the covariances within both classes, (C, C); `weights (2, n)` sum to one in each."""
    both = weights.mean(0)
    return (rows * both.unsqueeze(1)).T @ rows - means.T @ means / 2


def discriminant(rows: Tensor, means: Tensor, covariance: Tensor) -> Tensor:
    """Margins (n) of rows (n, C): the linear discriminant, scaled to -0.5 and 0.5 at the class means."""
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-8)
    difference = means[1] - means[0]
    direction = torch.linalg.solve(covariance + ridge * torch.eye(len(covariance)).to(covariance), difference)
    scale = (direction @ difference).clamp(min=1e-8)
    return (rows - means.mean(0)) @ (direction / scale)


def first_margin(rows: Tensor, head: Head, rich: int) -> Tensor:
    """Margins (n) of a query's rows (n, C) by the supports alone: discriminant and prototype mixed."""
    prototype = F.normalize(rows[:, -rich:], dim=1) @ head.direction
    return torch.lerp(discriminant(rows, head.means, head.covariance), prototype, head.share)


def refit(rows: Tensor, margin: Tensor, shown: Tensor, head: Head) -> Tensor:
    """Margins (n) of a head half-way to the query's own, which its sure positions make; `shown (n)` is 0 in padding."""
    weights = torch.stack([sure(-margin, shown).clamp(max=1).sign(), sure(margin, shown).clamp(max=1)])
    weights = weights / weights.sum(1, keepdim=True)
    means = weights @ rows
    covariance = covariance_of(rows, weights, means)
    return discriminant(rows, (head.means + means) / 2, (head.covariance + covariance) / 2)


def sure(margin: Tensor, shown: Tensor) -> Tensor:
    """Margins where they exceed SURE, elsewhere 0; where hardly any do, 1 at the largest ones."""
    margin = margin.masked_fill(shown == 0, -torch.inf)
    chosen = torch.where(margin > SURE, margin, 0)
    if (chosen > 0).sum() < MIN_POSITIONS:
        chosen = torch.zeros_like(margin).index_fill(0, margin.topk(min(SUREST, len(margin))).indices, 1)
    return chosen


def share_among_alike(x: Tensor, margin: Tensor) -> Tensor:
    """Every position's mean (h, w) of margins (h, w), weighted by how alike features `(C, h, w)` are.

    Compared with are means of 2 x 2 positions, a quarter of the work.
    """
    centred = unit(x - x.mean((1, 2), keepdim=True))
    keys = unit(F.avg_pool2d(centred[None], 2, ceil_mode=True)[0]).flatten(1)  # (C, n / 4)
    values = F.avg_pool2d(margin[None, None], 2, ceil_mode=True).flatten()
    return ((centred.flatten(1).T @ keys / TEMPERATURE).softmax(1) @ values).view_as(margin)


def grid_map(backbone: Backbone, maps: tuple[str, ...]) -> str:
    """The map on whose grid all are joined: the finest whose stride is at least 8."""
    strides = {info.name: info.stride for info in backbone.maps if info.name in maps}
    return min(maps, key=lambda name: (strides[name] < GRID_STRIDE, abs(strides[name] - GRID_STRIDE)))

"""Classifiers fitted to the supports alone, and adapted to every query: they need no weights but the backbone's."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.methods.method import Explanation, Features, Method, Role, Scores
from model.parts.base_learner import BaseLearner
from model.parts.maps import class_shares, image_size, positions, stage_maps, to_size, unit
from model.parts.neighbours import draw_examples, neighbour_margins
from util.config import Config
from util.image import MEAN, STD, ImageRule

RIDGE = 1.0  # added to the covariance's diagonal, in units of its mean
SMALL, LARGE = 0.05, 0.25  # shares of the supports' pixels up to, and from, which an object is small, or large
PROTOTYPE_SHARE = 0.2  # of its margin for a large object with one shot; with K shots a K-th of it, as of all these
MORE_PROTOTYPE = 0.4  # than that for a small one
NEIGHBOUR_SHARE = 0.2  # of the nearest neighbours' margin for a large object
MORE_NEIGHBOURS = 0.2  # than that for a small one
DISCRIMINANT_SHARE = 0.5  # of the discriminant's margin in what is left; the logistic regression's has the rest
RICH_NEIGHBOURS = 2.2  # times the difference of cosines in the maps that count for the prototype is a margin
NEIGHBOURS_OF_ALL = 2.7  # times that in all maps
DECAY = 0.03  # of the logistic regression's squared weights
MAX_ROWS = 5000  # positions of object and of background that it is fitted to
MAX_STEPS = 25  # of L-BFGS
LOGISTIC_LIMIT = 1.5  # up to which its margins count
RICH_MAPS = 2  # so many of the last maps count for the prototype
SURE = 0.3  # margin from which a query's positions show what is object or background in it
MIN_POSITIONS = 4  # that must be so sure; else the SUREST of all are taken
SUREST = 8
MAX_SURE = 500  # of either class, evenly drawn, that the discriminant of a query is fitted to at most
ROUNDS = 3  # of such fits, each with what the one before makes sure, with up to FEW_SHOTS; with more shots one
FEW_SHOTS = 5
LEAST_LIKENESS = 0.41  # of the prototype and the most similar positions of 640 pixels, else the object is not there
LESS_LIKENESS = 0.1  # than that is enough with one shot, which shows fewer sides; with K shots a K-th of it
MOST_SIMILAR = 0.01  # of the positions
ABSENT = 0.25  # margin by which an object that is not there lies below the background everywhere
SHARPNESS = 8.0  # of probabilities: margins are 0.5 at the class means
GRID_STRIDE = 8  # pixels
SHOWN_STRIDE = 8  # of the map that says where an image is shown


class Adapt(Method):
    """Linear classifiers and nearest neighbours on unit features of every stage, refitted to the query.

    With one shot a discriminant and a logistic regression are mixed with the nearest prototype and the supports'
    nearest positions at half the resolution; the more shots, the more the logistic regression has alone. In the fits
    object and background count alike; but where the object has few pixels, prototype and neighbours, which fit little,
    count more. All this finds positions of the query that are surely object or background; the discriminant's means and
    covariance then move half-way to theirs, and both margins are averaged (the idea of self-support, Fan et al., ECCV
    2022); with few shots this is done again with what those margins make sure. A query without the object has no
    position that is like the object's prototype, which is seen before that fit; all its margins are then lowered
    below 0.

    The state of B support sets: `means (B, 2, C)` of background and object, `covariance (B, C, C)` within them,
    `object (B, rich channels)`, its unit prototype, `direction` of that shape from the background's to it, `linear` and
    `logistic (B, C + 1)`, the weights and offset of both classifiers, `examples (B, 2, n, C)`, positions of
    background and object, `size (B)`, the object's share of the pixels, `shot (B)`.

    Args: backbone; names of the maps that are joined, from finer to coarser.
    """

    uses_base_learner = False
    images = ImageRule(fit="padded")
    learns_from_others = True

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
    def support_state(self, support: Features, masks: Tensor) -> dict[str, Tensor]:
        """As in Method, from all shots together; ignored pixels, 255, and padding count for nothing."""
        shots = masks.shape[:2]
        joined, shown = self._joined(support)
        share = class_shares(masks, joined) * shown  # (B * K, 2, h, w)
        weights = positions(share, shots).mT  # (B, 2, K * h * w)
        known = zip(positions(halved(joined), shots), positions(halved(share), shots).mT, strict=True)
        with torch.autocast(masks.device.type, enabled=False):  # half precision has no solver
            heads = [fit(*each, self.rich) for each in zip(positions(joined, shots), weights, strict=True)]
            heads = [{**head, "examples": draw_examples(*each)} for head, each in zip(heads, known, strict=True)]
        state = {name: torch.stack([head[name] for head in heads]) for name in heads[0]}
        return {**state, "shot": (masks == 1).any(3).any(2).sum(1).clamp(min=1)}

    @torch.no_grad()
    def score(self, query: Features, state: dict[str, Tensor], episode_class: Tensor | None = None) -> Scores:
        """As in Method, at the images' size."""
        return self._scores(torch.stack([margins[-1] for margins in self._margins(query, state)]))

    def explain(self, query: Features, state: dict[str, Tensor]) -> Explanation:
        """As in Method: the margins by the supports alone, and refitted to the query."""
        margins = torch.stack([torch.stack(each) for each in self._margins(query, state)], dim=1)  # (2, B, h, w)
        names = ("margin refitted to the query", "margin by the supports alone")
        return Explanation(self._scores(margins[-1]), dict(zip(names, margins.flip(0), strict=True)))

    def _margins(self, query: Features, state: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Of every query the margins (h, w) by the supports alone, and refitted."""
        found = []
        for number, (x, shown) in enumerate(zip(*self._joined(query), strict=True)):
            head = {name: part[number] for name, part in state.items()}
            rows = x.flatten(1).T  # (h * w, C)
            with torch.autocast(x.device.type, enabled=False):
                refitted = first = first_margin(x, head, self.rich)
                for _ in range(ROUNDS if head["shot"] <= FEW_SHOTS else 1):
                    refitted = (first + refit(rows, refitted, shown.flatten(), head)) / 2
                least = LEAST_LIKENESS - LESS_LIKENESS / head["shot"]
                if likeness(rows, shown.flatten(), head["object"]) < least:
                    refitted = refitted - refitted.max() - ABSENT
            found.append((first.view_as(x[0]), refitted.view_as(x[0])))
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


def fit(rows: Tensor, weights: Tensor, rich: int) -> dict[str, Tensor]:
    """Both classifiers of rows (n, C), weights (2, n) of background and object."""
    size = weights[1].sum() / weights.sum().clamp(min=1e-6)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    means = weights @ rows
    covariance = covariance_of(rows, weights, means)
    background, object_ = F.normalize(weights @ F.normalize(rows[:, -rich:], dim=1), dim=1)
    direction = object_ - background  # in units of its squared length
    return {
        "means": means,
        "covariance": covariance,
        "object": object_,
        "linear": discriminant(means, covariance),
        "direction": direction / direction.square().sum().clamp(min=1e-6),
        "logistic": logistic_regression(rows, weights),
        "size": size,
    }


def logistic_regression(rows: Tensor, weights: Tensor) -> Tensor:
    """Weights and offset (C + 1) of margins that are 1 apart at the means of both classes; `weights (2, n)` sum to one.

    Fitted to standardised features of MAX_ROWS positions of each class, drawn at random, always the same.
    """
    chance = torch.rand(rows.shape[0], generator=torch.Generator().manual_seed(0)).to(rows)
    drawn = torch.cat([chance.where(part > 0, -1).topk(min(MAX_ROWS, len(rows))).indices for part in weights]).unique()
    mean, deviation = rows[drawn].mean(0), rows[drawn].std(0).clamp(min=1e-6)
    inputs = F.pad((rows[drawn] - mean) / deviation, (0, 1), value=1.0)  # (m, C + 1)
    parts = weights[:, drawn] / weights[:, drawn].sum(1, keepdim=True).clamp(min=1e-6) / 2

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = torch.from_numpy(values).to(inputs)
        margin = inputs @ w
        decay = DECAY * F.pad(w[:-1], (0, 1))
        entropy = parts[0] @ F.softplus(margin) + parts[1] @ F.softplus(-margin)
        slope = inputs.T @ (parts[0] * margin.sigmoid() - parts[1] * (-margin).sigmoid())
        return float(entropy + decay @ w), (slope + 2 * decay).cpu().double().numpy()

    found = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS}).x
    w = torch.from_numpy(found).to(rows)
    w = torch.cat([w[:-1] / deviation, w[-1:] - (w[:-1] / deviation * mean).sum()])
    apart = (weights[1] - weights[0]) @ rows @ w[:-1]
    return w / apart.clamp(min=1e-6)


def covariance_of(rows: Tensor, weights: Tensor, means: Tensor) -> Tensor:
    """Mean of the covariances within both classes, (C, C); `weights (2, n)` sum to one in each."""
    both = weights.mean(0)
    return (rows * both.unsqueeze(1)).T @ rows - means.T @ means / 2


def discriminant(means: Tensor, covariance: Tensor) -> Tensor:
    """Weights and offset (C + 1) of the linear discriminant's margins, which are -0.5 and 0.5 at the class means."""
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-8)
    difference = means[1] - means[0]
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(covariance))
    direction = torch.cholesky_solve(difference.unsqueeze(1), factor).squeeze(1)
    direction = direction / (direction @ difference).clamp(min=1e-8)
    return torch.cat([direction, -(means.mean(0) @ direction)[None]])


def margins_of(rows: Tensor, linear: Tensor) -> Tensor:
    """Margins (n) of rows (n, C) by weights and offset (C + 1)."""
    return rows @ linear[:-1] + linear[-1]


def first_margin(x: Tensor, head: dict[str, Tensor], rich: int) -> Tensor:
    """Margins (h * w) of a query (C, h, w) by the supports alone: of all that was fitted to them, mixed."""
    rows = x.flatten(1).T
    prototype = F.normalize(rows[:, -rich:], dim=1) @ head["direction"]
    logistic = margins_of(rows, head["logistic"]).clamp(-LOGISTIC_LIMIT, LOGISTIC_LIMIT)
    small = 1 - ((head["size"] - SMALL) / (LARGE - SMALL)).clamp(0, 1)
    linear = torch.lerp(logistic, margins_of(rows, head["linear"]), DISCRIMINANT_SHARE / head["shot"])
    of_prototype = (PROTOTYPE_SHARE + MORE_PROTOTYPE * small) / head["shot"]
    of_neighbours = (NEIGHBOUR_SHARE + MORE_NEIGHBOURS * small) / head["shot"]
    return (
        of_prototype * prototype
        + of_neighbours * nearest_margin(x, head["examples"], rich)
        + (1 - of_prototype - of_neighbours) * linear
    )


def nearest_margin(x: Tensor, examples: Tensor, rich: int) -> Tensor:
    """Margins (h * w) of a query (C, h, w) by its nearest examples, at half the resolution."""
    half = halved(x[None])[0]
    rows = half.flatten(1).T
    of_all, of_rich = neighbour_margins(rows, examples, rich)
    margin = (RICH_NEIGHBOURS * of_rich + NEIGHBOURS_OF_ALL * of_all) / 2
    whole = F.interpolate(margin.view(1, 1, *half.shape[1:]), scale_factor=2, mode="bilinear", align_corners=False)
    return whole[0, 0, : x.shape[1], : x.shape[2]].flatten()


def halved(x: Tensor) -> Tensor:
    """Maps (B, C, h, w) averaged over 2 x 2 positions."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


def refit(rows: Tensor, margin: Tensor, shown: Tensor, head: dict[str, Tensor]) -> Tensor:
    """Margins of a discriminant half-way to that of the query's sure positions; `shown (n)` is 0 in padding."""
    weights = torch.stack([sure(-margin, shown).clamp(max=1).sign(), sure(margin, shown).clamp(max=1)])
    found = [part.nonzero().flatten() for part in weights]
    drawn = torch.cat([places[:: 1 + len(places) // MAX_SURE] for places in found]).unique()
    weights, certain = weights[:, drawn] / weights[:, drawn].sum(1, keepdim=True), rows[drawn]
    means = weights @ certain
    covariance = covariance_of(certain, weights, means)
    return margins_of(rows, discriminant((head["means"] + means) / 2, (head["covariance"] + covariance) / 2))


def likeness(rows: Tensor, shown: Tensor, prototype: Tensor) -> Tensor:
    """Mean cosine of a unit prototype (rich channels) and the MOST_SIMILAR of a query's rows (n, C)."""
    cosines = (F.normalize(rows[:, -len(prototype) :], dim=1) @ prototype).masked_fill(shown == 0, -1)
    return cosines.topk(max(1, int(MOST_SIMILAR * len(cosines)))).values.mean()


def sure(margin: Tensor, shown: Tensor) -> Tensor:
    """Margins where they exceed SURE, elsewhere 0; where hardly any do, 1 at the largest ones."""
    margin = margin.masked_fill(shown == 0, -torch.inf)
    chosen = torch.where(margin > SURE, margin, 0)
    if (chosen > 0).sum() < MIN_POSITIONS:
        chosen = torch.zeros_like(margin).index_fill(0, margin.topk(min(SUREST, len(margin))).indices, 1)
    return chosen


def grid_map(backbone: Backbone, maps: tuple[str, ...]) -> str:
    """The map on whose grid all are joined: the finest whose stride is at least 8."""
    strides = {info.name: info.stride for info in backbone.maps if info.name in maps}
    return min(maps, key=lambda name: (strides[name] < GRID_STRIDE, abs(strides[name] - GRID_STRIDE)))

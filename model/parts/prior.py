"""Prior masks without parameters (PFENet, TPAMI 2020; as HMNet uses them: paper, section 4.1)."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import Backbone
from model.resize import resize
from util.errors import UserError


class LevelPrior(NamedTuple):
    """Priors from one feature level, per sample and shot, and the numbers by which levels are chosen."""

    foreground: Tensor  # (B, K, f, f), in [0, 1]
    background: Tensor  # (B, K, f, f), in [0, 1]
    discriminative: Tensor  # (B, K, f, f), where foreground exceeds background
    foreground_max: Tensor  # (B, K), largest foreground cosine
    discriminative_max: Tensor  # (B, K)


def foreground(masks: Tensor, size: int | Sequence[int], dtype: torch.dtype) -> Tensor:
    """How much of each cell is foreground, value 1, `(B, K, 1, h, w)` of the given size, of masks `(B, K, H, W)`."""
    return resize((masks == 1).to(dtype), size).unsqueeze(2)


def masked_average(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of `features (..., C, f, f)` under `mask (..., 1, f, f)`: prototypes `(..., C)`."""
    weights = mask / (mask.sum((-2, -1), keepdim=True) + 5e-4)  # first, as sums may exceed half precision
    return (features * weights).sum((-2, -1))


@torch.no_grad()
def prototypes(features: Tensor, mask: Tensor) -> Tensor:
    """Foreground and background prototypes `(B, K, 2, C)` of frozen support features `(B, K, C, h, w)`.

    `mask (B, K, 1, f, f)`. The features count as resized to f x f; instead of that large map, the mask is taken to
    the features' size by the resize's transpose, which gives the same sums.
    """
    size = features.shape[-2:]
    both = torch.cat([mask, 1 - mask], dim=2)  # (B, K, 2, f, f)
    counts = both.sum((-2, -1))
    weights = _resize_transposed(both, size).flatten(3)  # (B, K, 2, h * w)
    weights = weights / (counts.unsqueeze(-1) + 5e-4)  # first, as sums may exceed half precision
    return weights @ features.flatten(3).transpose(-1, -2)


def _resize_transposed(mask: Tensor, size: torch.Size) -> Tensor:
    """The transpose of resizing `size` to the mask's size, applied to `mask (..., f, f)`: `(..., *size)`."""
    rows = resize(torch.eye(size[0]).to(mask)[None, None], (mask.shape[-2], size[0]))[0, 0]  # (f, h)
    columns = resize(torch.eye(size[1]).to(mask)[None, None], (mask.shape[-1], size[1]))[0, 0]  # (f, w)
    return rows.T @ mask @ columns


@torch.no_grad()
def max_cosine_prior(query: Tensor, support: Tensor, mask: Tensor, normalise: bool = True) -> Tensor:
    """The largest cosine of every query position with any support position, per shot (PFENet, section 3.2).

    `query (B, C, h, w)`; `support (B, K, C, h', w')`, which counts as multiplied by `mask (B, K, 1, h', w')`, so that
    a position without any mask has the cosine 0. Returns `(B, K, h, w)`; with `normalise` the smallest and largest
    value of each map become 0 and 1, and a shot without any mask gives 0 everywhere.
    """
    queries = F.normalize(query.flatten(2), dim=1, eps=1e-7).transpose(1, 2)  # (B, h * w, C)
    best = []
    for sample, shots, masks in zip(queries, support.flatten(3), mask.flatten(2), strict=True):
        for shot, weight in zip(shots, masks, strict=True):  # (C, n) and (n,)
            seen = weight > 0  # products with the other positions are all 0
            columns = [F.normalize(shot[:, seen] * weight[seen], dim=0, eps=1e-7)]
            columns += [] if seen.all() else [shot.new_zeros(len(shot), 1)]
            best.append((sample @ torch.cat(columns, dim=1)).amax(1))
    prior = torch.stack(best).view(*support.shape[:2], *query.shape[-2:])
    return min_max(prior) if normalise else prior


def min_max(maps: Tensor) -> Tensor:
    """Maps `(..., h, w)` with the smallest and largest value of each at 0 and 1; 0 where all values are one."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


@torch.no_grad()
def masked_stage4(backbone: Backbone, f3: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Stage 4 of supports as it sees their objects alone (PFENet, BAM).

    `f3 (B, K, C3, h, w)`, `masks (B, K, H, W)`; returns `f4 (B, K, C4, h4, w4)` of f3 under the masks, and its own
    `mask (B, K, 1, h4, w4)`. Shot by shot, since batch norms in training mode see each shot as a batch.
    """
    masked = f3 * foreground(masks, f3.shape[-2:], f3.dtype)
    stage4 = cast(nn.Module, backbone.last_stage())
    f4 = torch.stack([stage4(shot) for shot in masked.unbind(1)], dim=1)
    return {"f4": f4, "mask": foreground(masks, f4.shape[-2:], f4.dtype)}


def with_stage4(backbone: Backbone, arch: str) -> Backbone:
    """The backbone, if its last stage can be run alone; else UserError."""
    if backbone.last_stage() is None:
        raise UserError(
            f"backbone: {arch} runs the last stage on masked features; "
            "choose resnet50, resnet101, vgg or a model of timm whose stages are in a row"
        )
    return backbone


def level_prior(query: Tensor, support_prototypes: Tensor, size: int) -> LevelPrior:
    """Priors of `query (B, C, h, w)` against `support_prototypes (B, K, 2, C)`, resized to `size`."""
    unit = F.normalize(support_prototypes, dim=-1, eps=1e-7)
    cosine = torch.einsum("bchw,bknc->bknhw", query, unit) / (
        query.norm(dim=1)[:, None, None] + 1e-7
    )  # (B, K, 2, h, w)
    low, high = cosine.amin((-2, -1), keepdim=True), cosine.amax((-2, -1), keepdim=True)
    normalised = (cosine - low) / (high - low + 1e-7)
    foreground, background = resize(normalised.flatten(0, 1), size).unflatten(0, normalised.shape[:2]).unbind(2)
    discriminative = F.relu(foreground - background)
    return LevelPrior(
        foreground, background, discriminative, high[:, :, 0].flatten(2).squeeze(-1), discriminative.amax((-2, -1))
    )


def select_prior(levels: list[LevelPrior]) -> Tensor:
    """Per sample and shot the better level's maps, averaged over shots: `(B, 2, f, f)`, foreground then discriminative.

    `levels` holds one level, or stage 4 and the base learner's feature, in that order; ties go to the first.
    """
    best = levels[0]
    foreground, discriminative = best.foreground, best.discriminative
    for level in levels[1:]:
        surer = (best.foreground_max < level.foreground_max)[..., None, None]
        foreground = torch.where(surer, level.foreground, foreground)
        clearer = (best.discriminative_max < level.discriminative_max)[..., None, None]
        discriminative = torch.where(clearer, level.discriminative, discriminative)
    return torch.stack([foreground, discriminative], dim=2).mean(1)

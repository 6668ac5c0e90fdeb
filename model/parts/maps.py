"""Frozen feature maps as training-free methods take them: unit vectors, coarse masks, the size of their images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbone import Backbone
from model.resize import resize
from util.errors import UserError


def unit(x: Tensor, dim: int = -3) -> Tensor:
    """Vectors of length one along `dim`, by default the channels of maps (..., C, h, w)."""
    return F.normalize(x, dim=dim)


def image_size(backbone: Backbone, name: str, size: torch.Size) -> tuple[int, int]:
    """The smallest height and width of images that a backbone turns into a map (h, w) of that name."""
    stride = next(info.stride for info in backbone.maps if info.name == name)
    height, width = (stride * (side - backbone.size_offset) + backbone.size_offset for side in size[-2:])
    return height, width


def coarse_mask(mask: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """A mask (H, W), of which the value 1 is the object, at a map's size (h, w), bool.

    Bilinear, half-pixel centres, more than half; a small object that this loses is taken by nearest position, and one
    that this loses too by the position of its centre of mass (INSID3). Nothing stays nothing.
    """
    object_ = (mask == 1).float()[None, None]
    coarse = F.interpolate(object_, size=tuple(size), mode="bilinear", align_corners=False)[0, 0] > 0.5
    if coarse.any() or not object_.any():
        return coarse
    coarse = F.interpolate(object_, size=tuple(size), mode="nearest")[0, 0] > 0.5
    if not coarse.any():
        centre = (mask == 1).nonzero().float().mean(0)  # (2,)
        row, column = (int(centre[axis] / max(mask.shape[axis] / size[axis], 1)) for axis in (0, 1))
        coarse[min(row, size[0] - 1), min(column, size[1] - 1)] = True
    return coarse


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) at an image's size, bilinear with half-pixel centres."""
    return resize(x, size, aligned=False)


def to_size(x: Tensor, size: torch.Size | tuple[int, int], aligned: bool) -> Tensor:
    """Maps (B, C, h, w) at another size: bilinear, with aligned corners or not, averaged where smaller."""
    if aligned:
        return resize(x, size)
    if x.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    return x if x.shape[-2:] == tuple(size) else enlarge(x, (size[0], size[1]))


def positions(x: Tensor, shots: torch.Size) -> Tensor:
    """Maps (B * K, C, h, w) of B sets of K shots, `shots` (B, K), as the positions of a set, (B, K * h * w, C)."""
    return x.flatten(2).unflatten(0, shots).movedim(2, -1).flatten(1, 2)


def class_shares(masks: Tensor, x: Tensor) -> Tensor:
    """How much of each position of maps `x (B * K, C, h, w)` is background and object: (B * K, 2, h, w).

    Of masks (B, K, H, W), where 255 is neither.
    """
    parts = torch.stack([masks == 0, masks == 1], dim=2).flatten(0, 1).to(x.dtype)
    return F.adaptive_avg_pool2d(parts, (x.shape[-2], x.shape[-1]))


def stage_maps(backbone: Backbone) -> tuple[str, ...]:
    """The last maps of up to six stages from stride 4 on; of a plain vision transformer its levels."""
    strides = {info.name: info.stride for info in backbone.maps}
    if len(set(strides.values())) == 1:
        return backbone.levels
    shown = list(strides)[: list(strides).index(backbone.levels[-1]) + 1]
    return tuple(name for name in shown if strides[name] >= 4 and not name.endswith(".sum"))[-6:]


def three_levels(backbone: Backbone) -> tuple[str, ...]:
    """The names of a backbone's three levels; UserError where `backbone_layers` names another number."""
    if len(backbone.levels) != 3:
        raise UserError(f"backbone_layers: this method takes three maps, not {len(backbone.levels)}")
    return backbone.levels

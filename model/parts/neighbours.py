"""Nearest neighbours among examples of background and object, as many of one as of the other."""

import torch
from torch import Tensor
from torch.nn import functional as F

EXAMPLES = 1000  # of background and of object at most
NEIGHBOURS = 5
CLEAR = 0.5  # share of a position, or of the largest one where none is larger, from which it is an example


def draw_examples(rows: Tensor, shares: Tensor) -> Tensor:
    """Rows (2, EXAMPLES, C) of background and object among rows (n, C) with `shares (2, n)`.

    Positions are drawn at random, always the same; where there are fewer, the rest is 0.
    """
    chance = torch.rand(len(rows), generator=torch.Generator().manual_seed(0)).to(rows)
    found = rows.new_zeros(2, EXAMPLES, rows.shape[1])
    for examples, share in zip(found, shares, strict=True):
        clear = share > CLEAR * share.max().clamp(max=1)
        drawn = chance.where(clear, -1).topk(min(EXAMPLES, int(clear.sum()))).indices
        examples[: len(drawn)] = rows[drawn]
    return found


def neighbour_margins(rows: Tensor, examples: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """How much more rows (n, C) are like the object's nearest examples than the background's (2, EXAMPLES, C).

    The differences (n) of the mean cosines with the NEIGHBOURS nearest ones: of all channels, and of the last ones.
    """
    first, rest = F.normalize(rows, dim=1).tensor_split([-last], dim=1)
    means = []
    for each in examples:
        count = max(1, int(each.any(1).sum()))
        first_of_each, rest_of_each = F.normalize(each[:count], dim=1).tensor_split([-last], dim=1)
        product = rest @ rest_of_each.T
        lengths = torch.outer(rest.norm(dim=1), rest_of_each.norm(dim=1)).clamp(min=1e-12)
        cosines = torch.addmm(product, first, first_of_each.T), product / lengths
        means.append([x.topk(min(NEIGHBOURS, count), dim=1).values.mean(1) for x in cosines])
    background, object_ = means
    return object_[0] - background[0], object_[1] - background[1]

"""What happens inside the trunk: the numbers of the paper's Figures 5 and 7.

Maps are channels last as in `model.mamba`, of one episode, B = 1: query `q` and support `s`, `(1, f, f, C)`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.hmnet import HMNet
from model.mamba import DIRECTIONS, HybridBlock, MambaBlock, Tokens
from model.order import patch_orders, plain_orders
from model.resize import resize, resize_last
from model.trunk import Trunk
from tools.stages import Captured
from util.errors import UserError


class Visit(NamedTuple):
    """A hybrid block and the maps that enter and leave it in one episode."""

    number: int  # among all blocks, from 0
    block: HybridBlock
    query: Tensor  # (1, f, f, C)
    support: Tensor  # (1, f, f, C)
    enhanced: Tensor  # (1, f, f, C), the query when it leaves


class StateCosines(NamedTuple):
    """Cosine of every position of the downsampled support with the hidden state, segment by segment."""

    after_support: Tensor  # (P or 1, p, p): after each time that the support was scanned
    after_query: Tensor  # (P, p, p): after each query patch
    support_maxima: Tensor  # (P or 1,): the largest cosine, mean over directions
    query_maxima: Tensor  # (P,)


@torch.inference_mode()
def visits(model: HMNet, item: dict[str, Any]) -> Iterator[Visit]:
    """The hybrid blocks of a network in the order of computation, for one episode as a test data set gives it.

    Raises UserError for a network without any.
    """
    device = next(model.parameters()).device
    query, support, mask = (item[key][None].to(device) for key in ("query", "support", "support_mask"))
    if not any(isinstance(block, HybridBlock) for block in model.trunk.blocks):
        raise UserError("this network has no hybrid Mamba block: needs fusion hmnet, and srm or qim other than none")
    with Captured(model) as captured:
        model(query, support, mask)
    yield from walk(model.trunk, captured["merge_query"], captured["merge_support"])


def walk(trunk: Trunk, q: Tensor, s: Tensor) -> Iterator[Visit]:
    """Lead query and support through the trunk and stop at every hybrid block."""
    for number, block in enumerate(trunk.blocks):
        assert isinstance(block, MambaBlock)
        left, memory = block.encode_support(s)
        enhanced = block(q, memory)
        if isinstance(block, HybridBlock):
            yield Visit(number, block, q, s, enhanced)
        q, s = enhanced, left


@torch.inference_mode()
def state_cosines(visit: Visit) -> StateCosines:
    """Figure 5: how much of the support is left in SRM's hidden state after each segment of the sequence.

    The segments are those of section 4.2: support, query patch, support, query patch... With `srm: basic` the support
    comes once, and the query's tokens, in plain order, are cut into as many segments of the same length. After a
    segment the state is `h (D, N)` per direction; at position j of the support, whose scan input is `u_j (D)`, stands
    `max over n of cos(u_j, h[:, n])`. A map is the mean of the four directions; the figure's number is the maximum
    over positions, taken per direction and then averaged. (The paper does not say how it turns D x N numbers into one
    cosine; this is the nearest reading of "maximum cosine".) Raises UserError where the state never sees the support.
    """
    block, scan = visit.block, visit.block.scan
    if block.srm == "none":
        raise UserError("srm: none leaves the support out of the state; use recap or basic")
    size, patches = visit.query.shape[1], block.patch_ratio
    small = resize_last(block.support.scan_input(block.ln_1(visit.support)), size // patches)
    _, memory = scan.memory(scan.project(small.flatten(1, 2)), plain_orders(size // patches, small.device))
    tokens = scan.project(block.query.scan_input(block.ln_1(visit.query)).flatten(1, 2))
    recap = block.srm == "recap"
    order = patch_orders(size, patches, small.device) if recap else plain_orders(size, small.device)
    state, after_support, after_query = memory.state, [memory.state], []
    for number, positions in enumerate(order.chunk(patches**2, dim=1)):  # (4, f * f / P) each
        if recap and number:
            state = memory.decay * state + memory.state
            after_support.append(state)
        state = next_state(block, tokens, positions, state)
        after_query.append(state)
    return StateCosines(*_compare(small, after_support, after_query))


def next_state(block: HybridBlock, tokens: Tokens, positions: Tensor, state: Tensor) -> Tensor:
    """The states `(1, 4, D, N)` after the tokens at `positions (4, T)`, a row per direction, have been scanned."""
    states = []
    for direction, here in enumerate(positions):
        part = Tokens(tokens.u[:, here], tokens.projected[:, here])
        in_order = torch.arange(len(here), device=here.device).expand(DIRECTIONS, -1).contiguous()
        states.append(block.scan(part, in_order, initial_state=state)[1][:, direction])
    return torch.stack(states, dim=1)


def _compare(small: Tensor, *groups: list[Tensor]) -> Iterator[Tensor]:
    """Maps, then maxima, of groups of states `(1, 4, D, N)` against the support's scan input `(1, p, p, D)`."""
    unit = F.normalize(small[0].float(), dim=-1)  # (p, p, D)
    cosines = []
    for group in groups:
        states = F.normalize(torch.cat(group).float(), dim=2)  # (segments, 4, D, N)
        cosines.append(torch.einsum("hwd,skdn->skhwn", unit, states).amax(-1))  # (segments, 4, p, p)
    yield from (cosine.mean(1) for cosine in cosines)
    yield from (cosine.amax((-2, -1)).mean(1) for cosine in cosines)


def mean_cosine(q: Tensor, query_mask: Tensor, s: Tensor, support_mask: Tensor) -> float | None:
    """Mean cosine of all pairs of a query and a support foreground position; None without foreground in either.

    Args: q, s `(1, f, f, C)`; masks `(1, f, f)` in [0, 1], by which positions count.
    """
    sums = []
    for features, mask in ((q, query_mask), (s, support_mask)):
        weight = mask.flatten(1)  # (1, f * f)
        if not weight.sum() > 0:
            return None
        unit = F.normalize(features.flatten(1, 2).float(), dim=-1)  # (1, f * f, C)
        sums.append((weight[:, None] @ unit)[0, 0] / weight.sum())  # (C,)
    return float(sums[0] @ sums[1])


@torch.inference_mode()
def enhancement(model: HMNet, item: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Figure 7: by hybrid block, the cosine of the query's object with the support's before and after the block.

    Both are `mean_cosine` of foreground positions; the support is as it enters the block, the query as it enters and
    as it leaves. Compared are a network with QIM and one without. Empty where an object vanishes at the trunk's size.
    """
    found = {}
    for visit in visits(model, item):
        size, device = visit.query.shape[1], visit.query.device
        shots = resize((item["support_mask"][None] == 1).float(), size).mean(1).to(device)  # (1, f, f)
        truth = resize((item["query_mask"] == 1).float()[None, None], size)[:, 0].to(device)  # (1, f, f)
        before, after = (mean_cosine(q, truth, visit.support, shots) for q in (visit.query, visit.enhanced))
        if before is not None and after is not None:
            found[visit.number] = before, after
    return found

"""What happens inside the trunk: the numbers of the paper's Figures 5 and 7.

Maps are channels last as in `model.parts.mamba`, of one episode, B = 1: query `q` and support `s`, `(1, f, f, C)`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.methods.hmnet import HMNet
from model.parts.mamba import DIRECTIONS, HybridBlock, Tokens
from model.parts.order import patch_orders, plain_orders
from model.resize import resize, resize_last
from util.errors import UserError


class Visit(NamedTuple):
    """A hybrid block and what enters it in one episode."""

    number: int  # among all blocks, from 0
    block: HybridBlock
    query: Tensor  # (1, f, f, C)
    support: Tensor  # (1, f, f, C)
    mask: Tensor  # (1, f, f), the share of the supports that is foreground


@torch.inference_mode()
def visits(model: HMNet, item: dict[str, Any]) -> list[Visit]:
    """The hybrid blocks of a network in the order of computation, for one episode as a test data set gives it.

    Raises UserError for a network without any.
    """
    device = next(model.parameters()).device
    query, support, mask = (item[key][None].to(device) for key in ("query", "support", "support_mask"))
    blocks = {number: block for number, block in enumerate(model.trunk.blocks) if isinstance(block, HybridBlock)}
    if not blocks:
        raise UserError("this network has no hybrid Mamba block: needs fusion hmnet, and srm or qim other than none")
    entered: list[Tensor] = []  # what each block's first layer norm takes: all supports, then all queries
    hooks = [block.ln_1.register_forward_hook(lambda *seen: entered.append(seen[1][0])) for block in blocks.values()]
    model(query, support, mask)
    for hook in hooks:
        hook.remove()
    foreground = resize((mask == 1).float(), model.feature_size).mean(1)  # (1, f, f)
    supports, queries = entered[: len(blocks)], entered[len(blocks) :]
    found = zip(blocks.items(), queries, supports, strict=True)
    return [Visit(number, block, q, s, foreground) for (number, block), q, s in found]


@torch.inference_mode()
def state_cosines(visit: Visit) -> dict[str, tuple[Tensor, Tensor]]:
    """Figure 5: how much of the support is left in SRM's hidden state after each segment of direction 0's sequence.

    The segments are those of section 4.2: support, query patch, support, query patch... With `srm: basic` the support
    comes once, and the query's tokens, in plain order, are cut into as many segments of the same length. After a
    segment the state is `h (D, N)`; at position j of the support, whose scan input is `u_j (D)`, stands
    `max over n of cos(u_j, h[:, n])`. The figure's number is the maximum over the support's foreground: cells that are
    at least half foreground, or the fullest ones where none is. Raises UserError where no state sees the support.

    Returns by name, `after_support` for each time that it was scanned and `after_query` for each of P patches: maps
    (P or 1, p, p) of the downsampled support's positions, and those maxima (P or 1,).
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
    state, states = memory.state, {"after_support": [memory.state], "after_query": []}
    for number, positions in enumerate(order[0].chunk(patches**2)):  # (f * f / P) each
        if recap and number:
            state = memory.decay * state + memory.state
            states["after_support"].append(state)
        part = Tokens(tokens.u[:, positions], tokens.projected[:, positions])
        in_order = torch.arange(len(positions), device=small.device).expand(DIRECTIONS, -1).contiguous()
        state = scan(part, in_order, initial_state=state)[1]
        states["after_query"].append(state)
    mask = resize(visit.mask[None], size // patches)[0, 0]  # (p, p)
    unit = F.normalize(small[0].float(), dim=-1)  # (p, p, D)
    found = {}
    for name, those in states.items():
        h = F.normalize(torch.cat(those)[:, 0].float(), dim=1)  # (segments, D, N)
        cosines = torch.einsum("hwd,sdn->shwn", unit, h).amax(-1)  # (segments, p, p)
        found[name] = cosines, cosines[:, mask >= min(0.5, float(mask.max()))].amax(1)
    return found


def readings(visit: Visit) -> dict[str, tuple[Tensor, Tensor]]:
    """Query and support `(1, f, f, channels)` at the places of a block where "features" may be meant.

    The residual stream, its layer norm, the scan's input u and its output y, which has SRM's and QIM's share, and that
    output beside the support's input.
    """
    block = visit.block
    q, s = block.ln_1(visit.query), block.ln_1(visit.support)
    u_q, u_s = block.query.scan_input(q), block.support.scan_input(s)
    y_s, memory = block.scan_support(u_s)
    y_q = block.scan_query(u_q, memory)
    found = {"residual": (visit.query, visit.support), "LN": (q, s), "u": (u_q, u_s), "y": (y_q, y_s)}
    return {**found, "y with u": (y_q, u_s)}


def mean_cosine(q: Tensor, query_mask: Tensor, s: Tensor, support_mask: Tensor) -> float | None:
    """Mean cosine of all pairs of a query and a support position that count; None where none does in either.

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
def enhancement(model: HMNet, item: dict[str, Any]) -> dict[int, dict[str, tuple[float, float]]]:
    """Figure 7: by hybrid block and reading, the mean cosine of the query with the support's foreground.

    Two of them: of the query's object, and of the whole query. "Initial" in the figure is the reading u, "enhanced" is
    y. Empty where an object vanishes at the trunk's size.
    """
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for visit in visits(model, item):
        size, device = visit.query.shape[1], visit.query.device
        truth = resize((item["query_mask"] == 1).float()[None, None], size)[:, 0].to(device)  # (1, f, f)
        for name, (q, s) in readings(visit).items():
            cosines = [mean_cosine(q, mask, s, visit.mask) for mask in (truth, torch.ones_like(truth))]
            if cosines[0] is not None and cosines[1] is not None:
                found.setdefault(visit.number, {})[name] = cosines[0], cosines[1]
    return found

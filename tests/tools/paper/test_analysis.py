"""The numbers of Figures 5 and 7 against plain loops."""

import copy
import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.mamba import HybridBlock, SelfBlock, Tokens
from model.order import patch_orders, plain_orders
from model.resize import resize_last
from model.trunk import Trunk
from tests.model.test_hmnet import small
from tools.paper.analysis import Visit, enhancement, mean_cosine, state_cosines, visits, walk
from util.errors import UserError

SIZE, PATCHES = 6, 2


def make_visit(srm: str) -> Visit:
    """A double-precision block whose weights are large enough for states that differ."""
    block = HybridBlock(8, 3, "reference", patch_ratio=PATCHES, srm=srm, qim="none").double()  # type: ignore[arg-type]
    torch.nn.init.normal_(block.scan.x_proj, std=0.3)
    maps = [torch.randn(1, SIZE, SIZE, 8, dtype=torch.float64) for _ in range(2)]
    return Visit(0, block, maps[0], maps[1], enhanced=maps[0])


def step(block: HybridBlock, direction: int, state: Tensor, u: Tensor) -> Tensor:
    """One token `u (D)` into the state `(D, N)`, as section 4 writes it."""
    scan = block.scan
    low, b, _ = (scan.x_proj[direction] @ u).split([scan.rank, scan.state_size, scan.state_size])
    delta = F.softplus(scan.dt_proj[direction] @ low + scan.dt_bias[direction])
    A = -scan.A_log[direction].exp()
    return torch.exp(delta[:, None] * A) * state + (delta * u)[:, None] * b


def largest_cosine(support: Tensor, state: Tensor) -> Tensor:
    """Of every position of `support (L, D)` with the columns of `state (D, N)`."""
    pairs = itertools.product(support, state.T)
    cosines = torch.stack([u @ h / (u.norm() * h.norm()) for u, h in pairs])
    return cosines.view(len(support), -1).amax(1)


@pytest.mark.parametrize("srm", ["recap", "basic"])
@torch.inference_mode()
def test_state_cosines_token_by_token(srm: str) -> None:
    """The whole sequence of every direction, the support replayed in front of each patch as section 4.3 says."""
    visit = make_visit(srm)
    block = visit.block
    side = SIZE // PATCHES
    support = resize_last(block.support.scan_input(block.ln_1(visit.support)), side).view(side**2, -1)
    query = block.query.scan_input(block.ln_1(visit.query)).view(SIZE**2, -1)
    orders = patch_orders(SIZE, PATCHES) if srm == "recap" else plain_orders(SIZE)
    supports = PATCHES**2 if srm == "recap" else 1
    after_support = torch.zeros(4, supports, side**2, dtype=torch.float64)
    after_query = torch.zeros(4, PATCHES**2, side**2, dtype=torch.float64)
    for k in range(4):
        state = torch.zeros(16, 3, dtype=torch.float64)
        for segment, positions in enumerate(orders[k].split(side**2)):
            if segment < supports:
                for position in plain_orders(side)[k]:
                    state = step(block, k, state, support[position])
                after_support[k, segment] = largest_cosine(support, state)
            for position in positions:
                state = step(block, k, state, query[position])
            after_query[k, segment] = largest_cosine(support, state)
    found = state_cosines(visit)
    for maps, maxima, expected in (
        (found.after_support, found.support_maxima, after_support),
        (found.after_query, found.query_maxima, after_query),
    ):
        torch.testing.assert_close(maps.double().flatten(1), expected.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(maxima.double(), expected.amax(-1).mean(0), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_last_state_is_that_of_the_network() -> None:
    visit = make_visit("recap")
    block = visit.block
    memory = block.remember(visit.support)
    tokens: Tokens = block.scan.project(block.query.scan_input(block.ln_1(visit.query)).flatten(1, 2))
    state = block.scan(tokens, plain_orders(SIZE), initial_state=memory.state)[1]
    block.srm = "basic"
    small_support = resize_last(block.support.scan_input(block.ln_1(visit.support)), SIZE // PATCHES)
    expected = torch.stack([largest_cosine(small_support.view(9, -1), state[0, k]) for k in range(4)]).mean(0)
    torch.testing.assert_close(state_cosines(visit).after_query[-1].double().flatten(), expected, atol=1e-5, rtol=0)


def test_a_state_that_never_sees_the_support() -> None:
    with pytest.raises(UserError, match="srm: none leaves the support out of the state"):
        state_cosines(make_visit("none"))


@torch.inference_mode()
def test_walking_through_the_trunk() -> None:
    blocks = [SelfBlock(8, 3, "reference"), HybridBlock(8, 3, "reference", patch_ratio=PATCHES)] * 2
    trunk = Trunk(copy.deepcopy(blocks), 8)
    q, s = torch.randn(2, 1, SIZE, SIZE, 8)
    seen = list(walk(trunk, q, s))
    assert [visit.number for visit in seen] == [1, 3]
    torch.testing.assert_close(trunk.norm(seen[-1].enhanced), trunk(q, trunk.encode_support(s)))
    torch.testing.assert_close(seen[1].block.remember(seen[1].support), trunk.encode_support(s)[3])


def test_mean_cosine_pair_by_pair() -> None:
    q, s = torch.randn(2, 1, 4, 4, 5)
    masks = (torch.rand(2, 1, 4, 4) < 0.4).float()
    masks[:, :, 0, 0] = 1
    inside = [features[mask == 1] for features, mask in zip((q, s), masks, strict=True)]
    pairs = [F.cosine_similarity(a, b, dim=0) for a, b in itertools.product(*inside)]
    assert mean_cosine(q, masks[0], s, masks[1]) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    assert mean_cosine(q, 0.5 * masks[0], s, masks[1]) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    assert mean_cosine(q, torch.zeros(1, 4, 4), s, masks[1]) is None


def episode(foreground: bool = True) -> dict[str, Tensor]:
    mask = torch.zeros(1, 65, 65, dtype=torch.uint8)
    mask[:, 10:40, 20:50] = 1
    truth = torch.full((70, 50), 255, dtype=torch.uint8)
    truth[20:60, 5:30] = int(foreground)
    return {"query": torch.randn(3, 65, 65), "support": torch.randn(1, 3, 65, 65), "support_mask": mask} | {
        "query_mask": truth
    }


@torch.inference_mode()
def test_enhancement_by_block() -> None:
    """Of the object alone: everything outside the masks may change without effect on `before`."""
    model = small("blocks", "4")
    item = episode()
    found = enhancement(model, item)
    assert list(found) == [1, 3]
    for visit in visits(model, item):
        rows = torch.arange(8)
        assert visit.query.shape == (1, 8, 8, 16)
        shots = F.interpolate(item["support_mask"][None].float(), size=(8, 8), mode="bilinear", align_corners=True)[0]
        truth = (item["query_mask"] == 1).float()
        truth = F.interpolate(truth[None, None], size=(8, 8), mode="bilinear", align_corners=True)[0, 0]
        for q, value in zip((visit.query, visit.enhanced), found[visit.number], strict=True):
            total = weight = 0.0
            for a, b, c, d in itertools.product(rows, rows, rows, rows):
                w = float(truth[a, b] * shots[0, c, d])
                if w:
                    total += w * float(F.cosine_similarity(q[0, a, b], visit.support[0, c, d], dim=0))
                    weight += w
            assert value == pytest.approx(total / weight, abs=1e-5)


def test_an_object_that_vanishes() -> None:
    assert enhancement(small(), episode(foreground=False)) == {}


def test_other_trunks_have_nothing_to_show() -> None:
    with pytest.raises(UserError, match="no hybrid Mamba block"):
        next(visits(small("fusion", "concat"), episode()))

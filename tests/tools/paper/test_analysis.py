"""The numbers of Figures 5 and 7 against plain loops."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.parts.mamba import HybridBlock, Tokens
from model.parts.order import plain_orders
from model.resize import resize_last
from tests.model.methods.test_hmnet import small
from tools.paper.analysis import Visit, enhancement, mean_cosine, readings, state_cosines, visits
from util.errors import UserError

SIZE, PATCHES = 6, 2


def make_visit(srm: str, qim: str = "none") -> Visit:
    """A double-precision block whose weights are large enough for states that differ."""
    block = HybridBlock(8, 3, "reference", patch_ratio=PATCHES, srm=srm, qim=qim).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(block.scan.x_proj, std=0.3)
    maps = [torch.randn(1, SIZE, SIZE, 8, dtype=torch.float64) for _ in range(2)]
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.float64)
    mask[:, :4, 1:] = 1
    return Visit(0, block, maps[0], maps[1], mask)


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
    """The whole sequence of direction 0, the support replayed in front of each patch as section 4.3 says."""
    visit = make_visit(srm)
    block = visit.block
    side = SIZE // PATCHES
    support = resize_last(block.support.scan_input(block.ln_1(visit.support)), side).view(side**2, -1)
    query = block.query.scan_input(block.ln_1(visit.query)).view(SIZE**2, -1)
    rows = [row * SIZE + column for row in range(SIZE) for column in range(SIZE)]
    patches = [(row, column) for row in range(0, SIZE, side) for column in range(0, SIZE, side)]
    inside = [(row + i) * SIZE + column + j for row, column in patches for i in range(side) for j in range(side)]
    positions = inside if srm == "recap" else rows
    after_support, after_query = [], []
    state = torch.zeros(16, 3, dtype=torch.float64)
    for segment in range(PATCHES**2):
        if segment == 0 or srm == "recap":
            for u in support:
                state = step(block, 0, state, u)
            after_support.append(largest_cosine(support, state))
        for position in positions[segment * side**2 :][: side**2]:
            state = step(block, 0, state, query[position])
        after_query.append(largest_cosine(support, state))
    found = state_cosines(visit)
    foreground = F.interpolate(visit.mask[None], (side, side), mode="bilinear", align_corners=True)[0].flatten() >= 0.5
    assert 0 < foreground.sum() < side**2
    for name, states in (("after_support", after_support), ("after_query", after_query)):
        (maps, maxima), expected = found[name], torch.stack(states)
        torch.testing.assert_close(maps.double().flatten(1), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(maxima.double(), expected[:, foreground].amax(1), atol=1e-5, rtol=0)


def test_a_foreground_smaller_than_a_cell() -> None:
    visit = make_visit("recap")
    mask = torch.zeros_like(visit.mask)
    mask[:, 2, 3] = 0.2
    found = state_cosines(visit._replace(mask=mask))
    maps, maxima = found["after_query"]
    assert torch.equal(maxima, maps[:, 1, 1])  # the one cell that has some


@torch.inference_mode()
def test_the_last_state_is_that_of_the_network() -> None:
    visit = make_visit("recap")
    block = visit.block
    memory = block.remember(visit.support)
    tokens: Tokens = block.scan.project(block.query.scan_input(block.ln_1(visit.query)).flatten(1, 2))
    state = block.scan(tokens, plain_orders(SIZE), initial_state=memory.state)[1]
    block.srm = "basic"
    small_support = resize_last(block.support.scan_input(block.ln_1(visit.support)), SIZE // PATCHES)
    expected = largest_cosine(small_support.view(9, -1), state[0, 0])
    torch.testing.assert_close(
        state_cosines(visit)["after_query"][0][-1].double().flatten(), expected, atol=1e-5, rtol=0
    )


@torch.inference_mode()
def test_readings_are_what_the_block_computes() -> None:
    """Input and output of the scan, seen by hooks while the block runs; y is what out_norm gets."""
    visit = make_visit("recap", "share")
    block, seen = visit.block, {"norm": [], "out": []}  # type: ignore[var-annotated]
    block.out_norm.register_forward_hook(lambda _m, inputs, _out: seen["out"].append(inputs[0]))
    block.ln_1.register_forward_hook(lambda _m, _inputs, out: seen["norm"].append(out))
    _, memory = block.encode_support(visit.support)
    block(visit.query, memory)
    found = readings(visit)
    assert list(found) == ["residual", "LN", "u", "y", "y with u"]
    assert found["residual"] == (visit.query, visit.support)
    for pair, (s, q) in ((found["LN"], seen["norm"][:2]), (found["y"], seen["out"])):
        torch.testing.assert_close(pair, (q, s))
    for branch, u, x in zip((block.query, block.support), found["u"], found["LN"], strict=True):
        value = (x @ branch.in_proj.weight[:16].T).permute(0, 3, 1, 2)
        expected = F.conv2d(value, branch.conv.weight, branch.conv.bias, padding=1, groups=16)
        torch.testing.assert_close(u, (expected * expected.sigmoid()).permute(0, 2, 3, 1))
    torch.testing.assert_close(found["y with u"], (found["y"][0], found["u"][1]))


def test_a_state_that_never_sees_the_support() -> None:
    with pytest.raises(UserError, match="srm: none leaves the support out of the state"):
        state_cosines(make_visit("none"))


@torch.inference_mode()
def test_visits_are_what_enters_the_hybrid_blocks() -> None:
    """Against query and support led through the trunk block by block."""
    model, item = small("blocks", "4"), episode()
    query, support, mask = (item[key][None] for key in ("query", "support", "support_mask"))
    entered: dict[str, Tensor] = {}
    for name in ("merge_query", "merge_support"):
        keep = lambda _m, _i, out, name=name: entered.update({name: out.permute(0, 2, 3, 1)})  # noqa: E731
        getattr(model.embedding, name).register_forward_hook(keep)
    model(query, support, mask)
    q, s = entered["merge_query"], entered["merge_support"]
    seen = visits(model, item)
    assert [visit.number for visit in seen] == [1, 3]
    for number, block in enumerate(model.trunk.blocks):
        if number in (1, 3):
            torch.testing.assert_close((seen[number // 2].query, seen[number // 2].support), (q, s))
        s, memory = block.encode_support(s)
        q = block(q, memory)


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
    """Weighted means of cosines pair by pair, of the object and of the whole query."""
    model = small("blocks", "4")
    item = episode()
    found = enhancement(model, item)
    assert list(found) == [1, 3]
    for visit in visits(model, item):
        rows = torch.arange(8)
        shots = F.interpolate(item["support_mask"][None].float(), size=(8, 8), mode="bilinear", align_corners=True)[0]
        truth = (item["query_mask"] == 1).float()
        truth = F.interpolate(truth[None, None], size=(8, 8), mode="bilinear", align_corners=True)[0, 0]
        torch.testing.assert_close(visit.mask, shots)
        for name, (q, s) in readings(visit).items():
            for mask, value in zip((truth, torch.ones(8, 8)), found[visit.number][name], strict=True):
                weights = (mask[:, :, None, None] * shots[0]).double()
                q_unit, s_unit = (x[0].double() / x[0].double().norm(dim=-1, keepdim=True) for x in (q, s))
                cosines = torch.stack([(q_unit[a, b] * s_unit).sum(-1) for a in rows for b in rows]).view(8, 8, 8, 8)
                assert value == pytest.approx(float((weights * cosines).sum() / weights.sum()), abs=1e-5)


def test_an_object_that_vanishes() -> None:
    assert enhancement(small(), episode(foreground=False)) == {}


def test_other_trunks_have_nothing_to_show() -> None:
    with pytest.raises(UserError, match="no hybrid Mamba block"):
        visits(small("fusion", "concat"), episode())

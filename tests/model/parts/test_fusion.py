"""The trunk's alternatives: the common interface, the attention they compute, and that the paper's rows all train."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from model.build import build_model
from model.loss import episode_loss
from model.parts.fusion import FUSIONS as MIXINGS
from model.parts.fusion import CrossAttentionBlock, SelfAttentionBlock, SelfCalibratedBlock, attend, build_trunk
from model.parts.trunk import Trunk
from model.released import load_weights, released_state_dict
from model.resize import resize
from model.tensors import expand
from util.config import Config

M = TypeVar("M", bound=nn.Module)
MakeConfig = Callable[..., Config]

WIDTH, SIZE = 16, 8
FUSIONS = [name for name in MIXINGS if name != "concat"]
ROWS: list[dict[str, Any]] = [  # the paper's Table 3 without the ensemble
    {"self_blocks": False, "srm": "none", "qim": "none"},
    {"self_blocks": True, "srm": "none", "qim": "none"},
    {"self_blocks": True, "srm": "basic", "qim": "none"},
    {"self_blocks": True, "srm": "recap", "qim": "none"},
    {"self_blocks": True, "srm": "none", "qim": "basic"},
    {"self_blocks": True, "srm": "none", "qim": "share"},
    {"self_blocks": True, "srm": "none", "qim": "share", "qim_state_grad": True},
    {"self_blocks": True, "srm": "recap", "qim": "share"},
    {"self_blocks": False, "srm": "recap", "qim": "share"},
]
UNUSED = {3: ("blocks.1.support.mlp.", "blocks.2.support."), 4: ("blocks.3.support.mlp.",)}
TINY = {"backbone": "tiny", "width": WIDTH, "blocks": 4, "feature_size": SIZE, "scan": "reference", "initmodel": "none"}


def fusion_trunk(make_config: MakeConfig, fusion: str, blocks: int = 4) -> Trunk:
    return build_trunk(make_config(**TINY | {"fusion": fusion, "blocks": blocks}))


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of `(B, L, h, d)` and twice `(B, S, h, d)`, to `(B, L, h * d)`."""
    weight = torch.einsum("blhd,bshd->bhls", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhls,bshd->blhd", weight.softmax(-1), value).flatten(2)


def noisy(module: M) -> M:
    """Weights large enough that every term shows in the output."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def after_attention(block: Any, q: Tensor, mixed: Tensor) -> Tensor:
    q = q + mixed @ block.query.out_proj.weight.T
    return q + block.query.mlp(block.ln_2(q))


def maps(count: int = 2, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, SIZE, SIZE, WIDTH) for _ in range(count)]


def test_attention_is_the_plain_formula() -> None:
    query, key, value = (torch.randn(2, length, 3, 5) for length in (7, 9, 9))
    torch.testing.assert_close(attend(query, key, value), plain_attention(query, key, value), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("blocks", [3, 4])
def test_trunk_keeps_the_shape_and_trains(make_config: MakeConfig, fusion: str, blocks: int) -> None:
    trunk = noisy(fusion_trunk(make_config, fusion, blocks))
    q, s = (x.requires_grad_() for x in maps())
    out = trunk(q, trunk.encode_support(s))
    assert out.shape == q.shape
    assert len(trunk.blocks) == blocks
    (out * torch.randn_like(out)).sum().backward()
    assert (q.grad != 0).any(-1).all()
    for name, parameter in trunk.named_parameters():
        if parameter.grad is None or not parameter.grad.any():  # where the support ends, and what follows it
            assert name.startswith(UNUSED[blocks]), f"{name} does not learn"
    assert (s.grad is None) == (fusion == "mlp")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_support_set_is_shared_by_many_queries(make_config: MakeConfig, fusion: str) -> None:
    trunk = noisy(fusion_trunk(make_config, fusion))
    (q,), (s,) = maps(1, batch=3), maps(1, batch=1)
    memories = trunk.encode_support(s)
    together = trunk(q, expand(memories, 3))
    alone = torch.cat([trunk(one[None], trunk.encode_support(s)) for one in q])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_checkpointed_blocks_give_the_same_gradients(make_config: MakeConfig, fusion: str) -> None:
    trunk = noisy(fusion_trunk(make_config, fusion))
    q, s = maps()
    gradients = []
    for checkpoint_blocks in (False, True):
        trunk.checkpoint_blocks = checkpoint_blocks
        trunk.zero_grad()
        trunk(q, trunk.encode_support(s)).square().sum().backward()
        gradients.append([p.grad for p in trunk.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_self_attention_sees_its_own_map_only() -> None:
    block = noisy(SelfAttentionBlock(WIDTH))
    (q,) = maps(1)
    parts = [part.flatten(1, 2) for part in block.query.project(block.ln_1(q))]
    expected = after_attention(block, q, plain_attention(*parts).view_as(q))
    torch.testing.assert_close(block(q, None), expected, atol=1e-5, rtol=1e-4)


def test_cross_attention_reads_the_whole_support() -> None:
    block = noisy(CrossAttentionBlock(WIDTH))
    q, s = maps()
    (query,) = block.query.project(block.ln_1(q))
    key, value = block.support.project(block.ln_1(s))
    mixed = plain_attention(*(x.flatten(1, 2) for x in (query, key, value)))
    expected = after_attention(block, q, mixed.view_as(q))
    torch.testing.assert_close(block(q, block.remember(s)), expected, atol=1e-5, rtol=1e-4)


def test_self_calibrated_attention_patch_by_patch() -> None:
    block = noisy(SelfCalibratedBlock(WIDTH, patch_ratio=4))
    q, s = maps()
    side = SIZE // 4
    corners = [(y, x) for y in range(0, SIZE, side) for x in range(0, SIZE, side)]

    def patch(x: Tensor, corner: tuple[int, int]) -> Tensor:
        return x[corner[0] : corner[0] + side, corner[1] : corner[1] + side].flatten(0, 1)  # (t, ...)

    x_q, x_s = block.ln_1(q), block.ln_1(s)
    own, other = block.query.project(x_q), block.support.project(x_s)
    mixed = torch.zeros_like(q)
    for b in range(len(q)):
        looks = [patch(x_s[b], corner).mean(0) for corner in corners]
        for corner in corners:
            look = patch(x_q[b], corner).mean(0)
            best = corners[max(range(len(looks)), key=lambda i: torch.cosine_similarity(look, looks[i], dim=0).item())]
            query, key, value = (patch(part[b], corner) for part in own)
            key = torch.cat([key, patch(other[0][b], best)])
            value = torch.cat([value, patch(other[1][b], best)])
            result = plain_attention(query[None], key[None], value[None])[0].view(side, side, WIDTH)
            mixed[b, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = result
    expected = after_attention(block, q, mixed)
    torch.testing.assert_close(block(q, block.remember(s)), expected, atol=1e-5, rtol=1e-4)


def learned(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("fusion", ["hmnet", *MIXINGS])
def test_every_fusion_builds_trains_and_loads_again(make_config: MakeConfig, fusion: str) -> None:
    cfg = make_config(**TINY, fusion=fusion, ensemble=False)
    model = build_model(cfg, pretrained=False).train()
    episode = torch.randn(1, 3, 33, 33), torch.randn(1, 1, 3, 33, 33), torch.ones(1, 1, 33, 33)
    losses = episode_loss(model(*episode), torch.randint(0, 2, (1, 33, 33)))
    torch.stack([*losses.values()]).sum().backward()
    assert "embedding.merge_query.weight" in learned(model)
    assert ({"trunk.blocks.0.ln_2.weight", "trunk.norm.weight"} <= learned(model)) == (fusion != "concat")
    assert ("embedding.merge_support.weight" in learned(model)) == (fusion not in ("concat", "mlp"))
    again = build_model(cfg, pretrained=False)
    load_weights(again, released_state_dict(model))
    torch.testing.assert_close(again.eval()(*episode), model.eval()(*episode))  # both scores


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(str(value) for value in row.values()))
def test_every_row_of_the_component_table_builds_and_trains(make_config: MakeConfig, row: dict[str, Any]) -> None:
    trunk = noisy(build_trunk(make_config(**TINY, **row)))
    fusing = sum(bool(block.fuses) for block in trunk.blocks)
    assert fusing == (0 if row["srm"] == row["qim"] == "none" else 2 if row["self_blocks"] else 4)
    q, s = (x.requires_grad_() for x in maps())
    out = trunk(q, trunk.encode_support(s))
    assert out.shape == q.shape
    if not len(trunk.blocks):
        assert out is q
        return
    (out * torch.randn_like(out)).sum().backward()
    assert (s.grad is not None) == (row["srm"] != "none" or row.get("qim_state_grad", False))
    unused = {name for name, _ in trunk.named_parameters() if "support" not in name} - learned(trunk)
    assert not unused, f"{unused} do not learn"


@pytest.mark.parametrize("off", [{"self_blocks": False, "srm": "none", "qim": "none"}, {"fusion": "concat"}])
@torch.inference_mode()
def test_everything_off_is_the_decoder_on_the_embedding(make_config: MakeConfig, off: dict[str, Any]) -> None:
    """Table 3's first row: with all that mixes removed, the merged query goes to the decoder as it is."""
    model = build_model(make_config(**TINY, **off), pretrained=False).eval()
    assert not list(model.trunk.parameters())
    episode = torch.randn(1, 3, 33, 33), torch.randn(1, 1, 3, 33, 33), torch.ones(1, 1, 33, 33)
    merged: list[Tensor] = []
    model.embedding.merge_query.register_forward_hook(lambda _module, _inputs, out: merged.append(out))
    torch.testing.assert_close(model(*episode).meta, resize(model.decoder(merged[0]), 33))

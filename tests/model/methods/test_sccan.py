"""SCCAN against arrays of the published network and against loops over windows."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.build import build_model
from model.methods.sccan import SCCAN, Block, Memory, most_like
from tests.data import golden_rule
from tests.model.methods import recorded
from util.config import load_config
from util.errors import UserError

SIZE = 129
FIRST = ("layer3.0", "layer4.0")


@pytest.fixture(scope="module")
def model() -> SCCAN:
    model = recorded.published("sccan_resnet50_1s", "resnet50_sccan", SIZE)
    assert isinstance(model, SCCAN)
    return model


@torch.inference_mode()
def test_it_reproduces_the_original(model: SCCAN) -> None:
    expected = recorded.arrays("sccan_resnet50_1s")
    query, support, mask = recorded.episode(SIZE)
    captured: dict[str, Tensor] = {}
    hooks = [
        model.blocks[number].register_forward_hook(
            lambda _block, _inputs, out, n=number: captured.update({f"{n}": out})
        )
        for number in range(2)
    ]
    hooks.append(model.norm.register_forward_hook(lambda _norm, _inputs, out: captured.update(trunk=out)))
    embedded, state = model.embed_query(query), model.encode_support(support, mask)
    recorded.assert_close(state["prototype"].flatten(1), expected["prototype"])
    recorded.assert_close(model.prior(embedded, state), expected["prior"], 5e-5)
    recorded.assert_close(model.score(embedded, state).meta, expected["meta"])
    for number in range(2):
        tokens = captured[f"{number}"].flatten(1, 2)[:, ::32, ::32]
        recorded.assert_close(tokens, expected[f"query_block{number}"])
    recorded.assert_close(captured["trunk"].permute(0, 3, 1, 2)[:, ::32, ::4, ::4], expected["trunk"])
    empty = model.encode_support(support, torch.where(mask == 1, 0, mask))
    recorded.assert_close(model.score(embedded, empty).at(SIZE)[..., ::4, ::4], expected["empty_out"])
    for hook in hooks:
        hook.remove()


def test_training_reproduces_the_original(model: SCCAN) -> None:
    expected, truth = recorded.arrays("sccan_resnet50_1s"), golden_rule.masks(1, SIZE).long()
    truth[..., -(SIZE // 8) :] = 255
    losses = model.losses(recorded.training_scores(model, SIZE, 1), truth)
    assert losses["dice"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    losses["dice"].backward()
    unused = {key: p for key, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert all(key.startswith(("blocks.7.support_attention", "blocks.7.support_mlp")) for key in unused)
    for parameter in unused.values():  # the support goes no further
        parameter.grad = torch.zeros_like(parameter)
    recorded.assert_gradients(model, expected)


def test_the_trunk_learns_with_a_constant_rate_and_its_own_decay() -> None:
    cfg = load_config("config/coco/coco_split0_resnet50_sccan_5s.yaml", ["backbone", "tiny"])
    model = build_model(cfg, pretrained=False)
    rest, trunk = (model.optimizers(cfg)[name] for name in ("rest", "trunk"))
    for each in (rest, trunk):
        each.set_rates(0, 10)
    assert [group["lr"] for group in rest.optimizer.param_groups] == [pytest.approx(0.05 * 0.9**0.9)] * 8
    assert [(group["lr"], group["weight_decay"]) for group in trunk.optimizer.param_groups] == [(6e-5, 0.01)]
    assert cfg.dilate_first and not type(model).configured(cfg).dilate_first
    assert [stage.conv2.dilation for name, stage in model.backbone.named_modules() if name in FIRST] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("shifted", [False, True])
@torch.inference_mode()
def test_windows_are_cells_of_the_padded_map_and_go_back(shifted: bool) -> None:
    block, x = Block(32, shifted), torch.randn(2, 16, 16, 5)
    windows, pad = block._windows(x), 4 * shifted
    side = (16 + 2 * pad) // 8
    assert windows.shape == (2, side * side, 64, 5)
    padded = F.pad(x, (0, 0, pad, pad, pad, pad))
    for row, column, y, x_ in ((0, 0, 7, 2), (1, 0, 3, 3), (side - 1, side - 1, 0, 5)):
        cell = windows[:, row * side + column, 8 * y + x_]
        assert torch.equal(cell, padded[:, 8 * row + y, 8 * column + x_])
    assert torch.equal(block._map(windows, x), x)


@torch.inference_mode()
def test_the_window_of_the_largest_cosine_that_has_a_mask_is_seen() -> None:
    query, prototypes = torch.randn(1, 3, 4), torch.randn(1, 6, 4)
    prototypes[0, 5], prototypes[0, 1], prototypes[0, 4] = query[0, 0], query[0, 1], query[0, 1]
    masked = torch.tensor([[True, True, False, True, True, False]])
    best = most_like(query, Memory(torch.empty(0), prototypes, masked))[0]
    cosines = F.cosine_similarity(query[0, 0], prototypes[0, masked[0]], dim=-1)
    assert best[0] == masked[0].nonzero()[cosines.argmax(), 0]  # not the equal one, which has no mask
    assert best[1] == 1  # the first of equals
    assert not most_like(query, Memory(torch.empty(0), prototypes, torch.zeros(1, 6, dtype=torch.bool))).any()


def small(*words: str) -> SCCAN:
    words = ("backbone", "tiny", "width", "32", "blocks", "3", "feature_size", "16", *words)
    model = build_model(load_config("config/pascal/pascal_split0_resnet50_sccan.yaml", words), pretrained=False)
    assert isinstance(model, SCCAN)
    return model.eval()


@torch.inference_mode()
def test_attention_is_that_of_its_equation() -> None:
    block, q, memory = Block(64, False), torch.randn(1, 8, 8, 64), torch.randn(1, 64, 64)
    attention, own = block.query_attention, block.norm1(q).flatten(1, 2)
    found = attention(own.unsqueeze(1), memory.unsqueeze(1))[:, 0]
    heads = []
    for start in (0, 32):
        part = slice(start, start + 32)
        query = attention.q(own)[0, :, part]
        key, value = (attention.kv(own)[0, :, part], attention.kv(own)[0, :, 64 + start : 96 + start])
        far_key, far = (attention.kv(memory)[0, :, part], attention.kv(memory)[0, :, 64 + start : 96 + start])
        scores = torch.cat([query @ key.T / 32**0.5, F.cosine_similarity(query[:, None], far_key[None], dim=-1)], dim=1)
        heads.append(scores.softmax(1) @ torch.cat([value, far]))
    torch.testing.assert_close(found[0], attention.proj(torch.cat(heads, dim=1)), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_shots_are_averaged_and_their_order_does_not_matter() -> None:
    model, query = small(), torch.randn(1, 3, 65, 65)
    support, mask = torch.randn(1, 5, 3, 65, 65), torch.randint(0, 2, (1, 5, 65, 65))
    final = model(query, support, mask).final
    torch.testing.assert_close(model(query, support.flip(1), mask.flip(1)).final, final, atol=1e-5, rtol=1e-4)
    again = model(query, support[:, :1].repeat(1, 5, 1, 1, 1), mask[:, :1].repeat(1, 5, 1, 1)).final
    torch.testing.assert_close(model(query, support[:, :1], mask[:, :1]).final, again, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("key", "value"), [("feature_size", "20"), ("width", "40")])
def test_sizes_that_cannot_be_cut_are_named(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{key}: {value} should be a multiple of"):
        small(key, value)

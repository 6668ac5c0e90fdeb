"""DCAMA against arrays of the published network."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.backbone.build import imagenet_file
from model.build import build_model
from model.methods.dcama import DCAMA, average_mask, position_code
from tests.data import golden_rule
from tests.model.methods import recorded
from util.config import load_config
from util.errors import UserError

SIZE = 192


@pytest.fixture(scope="module")
def model() -> DCAMA:
    model = recorded.published("dcama_resnet50_1s", "resnet50_dcama", SIZE, ("feature_extractor.fc.", "model.pe."))
    assert isinstance(model, DCAMA)
    return model


@torch.inference_mode()
def test_it_reproduces_the_original(model: DCAMA) -> None:
    expected = recorded.arrays("dcama_resnet50_1s")
    query, support, mask = recorded.episode(SIZE)
    queries, supports = model.embed_query(query), model.embed(model.features(support[0], "support"), "support")
    state = model.support_state(supports, mask)
    for stage, name in (("2", "coarse8"), ("3", "coarse16"), ("4", "coarse32")):
        recorded.assert_close(model.aggregate(queries, state)[stage].flatten(2), expected[name])
    captured: dict[str, Tensor] = {}
    model.encoder3to2.register_forward_hook(lambda _module, _inputs, out: captured.update(mixed=out))
    recorded.assert_close(model.score(queries, state).final[..., ::4, ::4], expected["logits"])
    recorded.assert_close(captured["mixed"][:, ::16], expected["mixed"])
    empty = model.score(queries, model.support_state(supports, torch.where(mask == 1, 0, mask)))
    recorded.assert_close(empty.final[..., ::8, ::8], expected["empty_logits"])


def test_training_reproduces_the_original(model: DCAMA) -> None:
    expected = recorded.arrays("dcama_resnet50_1s")
    scores = recorded.training_scores(model, SIZE, batch=2)
    losses = model.losses(scores, golden_rule.masks(2, SIZE).long())  # whose 255 count as background
    assert losses["cross_entropy"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    losses["cross_entropy"].backward()
    recorded.assert_gradients(model, expected, "model.")
    assert not any(p.requires_grad for p in model.backbone.parameters())


@torch.inference_mode()
def test_masks_are_averaged_by_attention() -> None:
    query, support, mask = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.rand(2, 7)
    expected = torch.zeros(2, 5)
    for head in range(8):
        q, k = query[..., 2 * head : 2 * head + 2], support[..., 2 * head : 2 * head + 2]
        attention = (torch.einsum("bnc,bmc->bnm", q, k) / math.sqrt(2)).softmax(-1)
        expected += torch.einsum("bnm,bm->bn", attention, mask) / 8
    torch.testing.assert_close(average_mask(query, support, mask), expected)
    assert (average_mask(query, support, mask, dropout=0.5) - expected).abs().max() > 1e-4


def test_positions_have_sines_in_even_and_cosines_in_odd_channels() -> None:
    code = position_code(torch.zeros(1, 50, 6))
    for position, j in ((0, 0), (7, 1), (49, 2)):
        angle = position * 10000 ** (-2 * j / 6)
        expected = torch.tensor([math.sin(angle), math.cos(angle)])
        torch.testing.assert_close(code[position, 2 * j : 2 * j + 2], expected, atol=1e-5, rtol=1e-4)


def test_its_backbone_starts_from_timms_weights() -> None:
    cfg = load_config("config/coco/coco_split1_resnet50_dcama.yaml")
    assert imagenet_file(DCAMA.configured(cfg)) == Path("initmodel/resnet50_a1h-35c100f8.pth")
    other = load_config("config/coco/coco_split1_resnet50_dcama.yaml", ["imagenet_weights", "own.pth"])
    assert imagenet_file(DCAMA.configured(other)) == Path("initmodel/own.pth")


def test_sizes_and_backbones_that_do_not_fit_are_named() -> None:
    config = "config/pascal/pascal_split0_resnet50_dcama.yaml"
    with pytest.raises(UserError, match="val_size: 400 should be a multiple of 32, such as 384 or 416, for backbone"):
        build_model(load_config(config, ["val_size", "400"]), pretrained=False)
    with pytest.raises(UserError, match="backbone: DCAMA takes resnet50 or resnet101, not vgg16"):
        build_model(load_config(config, ["backbone", "vgg16"]), pretrained=False)

"""HSNet against arrays of the published network."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.build import build_model
from model.methods.hsnet import CenterPivotConv, HSNet, Votes
from model.methods.method import Scores
from tests.data import golden_rule
from tests.model.methods import recorded
from util.config import load_config
from util.errors import UserError

SIZE = 288
TIMM = ("backbone", "timm/tf_efficientnet_lite0", "train_h", "64", "train_w", "64", "val_size", "64")


@pytest.fixture(scope="module")
def model() -> HSNet:
    model = recorded.published("hsnet_resnet50_1s", "resnet50_hsnet", SIZE, ("backbone.fc.",))
    assert isinstance(model, HSNet)
    return model


@torch.inference_mode()
def test_it_reproduces_the_original(model: HSNet) -> None:
    expected = recorded.arrays("hsnet_resnet50_1s")
    query, support, mask = recorded.episode(SIZE)
    captured = {}
    for name in ("encoder3", "encoder4to3"):
        hook = lambda _module, _inputs, out, name=name: captured.update({name: out})  # noqa: E731
        getattr(model.learner, name).register_forward_hook(hook)
    queries, supports = model.features(query, "query"), model.features(support[0], "support")
    scores = model.score(queries, model.support_state(supports, mask))
    recorded.assert_close(scores.final[..., ::2, ::2], expected["logits"])
    recorded.assert_close(scores.at(SIZE)[..., ::6, ::6], expected["out"])
    recorded.assert_close(captured["encoder3"][:, ::16, ::3, ::3], expected["squeezed3"])
    recorded.assert_close(captured["encoder4to3"][:, ::16, ::3, ::3], expected["mixed43"])
    empty = model.score(queries, model.support_state(supports, torch.where(mask == 1, 0, mask)))
    recorded.assert_close(empty.at(SIZE)[..., ::12, ::12], expected["empty_out"])


@torch.inference_mode()
def test_negative_cosines_count_as_none(model: HSNet) -> None:
    expected, draws, sides = recorded.arrays("hsnet_resnet50_1s"), np.random.RandomState(71), {"2": 6, "3": 4, "4": 3}
    query, support = (
        {
            name: torch.tensor(draws.randn(1, 8, side, side), dtype=torch.float32)
            for stage, side in sides.items()
            for name in model.stages[stage]
        }
        for _ in range(2)
    )
    state = model.support_state(support, torch.ones(1, 1, 6, 6))
    correlations = model.correlations(query, state, 0)
    recorded.assert_close(correlations["4"], expected["signed_correlation4"])
    recorded.assert_close(correlations["3"][:, ::2], expected["signed_correlation3"])
    recorded.assert_close(model.score(query, state).final, expected["signed_logits"])


def test_training_reproduces_the_original(model: HSNet) -> None:
    expected = recorded.arrays("hsnet_resnet50_1s")
    scores = recorded.training_scores(model, SIZE, batch=1)
    losses = model.losses(scores, golden_rule.masks(1, SIZE).long())  # whose 255 count as background
    assert losses["cross_entropy"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    losses["cross_entropy"].backward()
    names = {key.replace("grad/", "grad/hpn_learner."): norm for key, norm in expected.items()}
    recorded.assert_gradients(model, {key: norm for key, norm in names.items() if key.startswith("grad/")})
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_published_weights_of_vgg_load_and_segment() -> None:
    model = recorded.published("hsnet_vgg16_1s", "vgg_hsnet", 128, ("backbone.classifier.",), drawn=False)
    with torch.inference_mode():
        scores = model(torch.randn(1, 3, 128, 128), torch.randn(1, 2, 3, 128, 128), torch.ones(1, 2, 128, 128))
    assert scores.final.shape == (1, 2, 128, 128)
    assert scores.final.isfinite().all()


def test_sizes_and_backbones_that_do_not_fit_are_named() -> None:
    config = "config/pascal/pascal_split0_vgg_hsnet.yaml"
    with pytest.raises(UserError, match="val_size: 265 does not suit HSNet with vgg16; take a multiple of 32"):
        build_model(load_config(config, ["val_size", "265"]), pretrained=False)
    with pytest.raises(UserError, match="backbone: HSNet takes resnet50, resnet101, vgg16 or a model of timm"):
        build_model(load_config(config, [*TIMM, "backbone", "timm/test_vit"]), pretrained=False)


def test_a_model_of_timm_shows_all_maps_of_a_stride() -> None:
    model = build_model(load_config("config/pascal/pascal_split0_resnet50_hsnet.yaml", TIMM), pretrained=False)
    assert isinstance(model, HSNet)
    assert {stage: len(names) for stage, names in model.stages.items()} == {"2": 1, "3": 2, "4": 2}
    image, support, mask = recorded.episode(64)
    query, state = model.embed_query(image), model.encode_support(support, mask)
    sizes = {stage: tuple(x.shape[1:4]) for stage, x in model.correlations(query, state, 0).items()}
    assert sizes == {"2": (1, 8, 8), "3": (2, 4, 4), "4": (2, 2, 2)}
    assert model.score(query, state).final.shape == (1, 2, 16, 16)


def test_the_vote_is_by_the_most_votes_of_a_pixel() -> None:
    expected = recorded.arrays("hsnet_resnet50_1s")
    shots = tuple(expected["vote_logits"].unsqueeze(1))
    votes = Votes.of(shots)
    assert torch.equal(votes.final.argmax(1)[0], expected["vote_mask"].long())
    assert torch.equal(votes.margin_at() > 0, votes.final.argmax(1) == 1)
    for others in ([], [torch.randn(1, 2, 12, 12)] * 5):  # another sample of the batch changes nothing
        batch = tuple(torch.cat([shot, *others[number : number + 1]]) for number, shot in enumerate(shots))
        assert torch.equal(Votes.of(batch).item(0).final, votes.final)


def test_every_shot_is_resized_before_the_vote() -> None:
    shots = tuple(torch.randn(2, 2, 5, 5) for _ in range(4))
    votes = Votes.of(shots)
    masks = [Scores(logits, logits).at(9, (12, 7)).argmax(1) for logits in shots]
    total = torch.stack(masks).sum(0).double()
    expected = total / total.amax((1, 2), keepdim=True).clamp(min=1) >= 0.5
    assert torch.equal(votes.at(9, (12, 7)).argmax(1) == 1, expected)
    assert torch.equal(votes.resize(9).resize((12, 7)).final.argmax(1) == 1, expected)
    assert torch.equal(votes.margin_at(9, (12, 7)) > 0, expected)
    assert torch.equal(votes.item(1).at(9, (12, 7))[0].argmax(0) == 1, expected[1])


@torch.inference_mode()
def test_center_pivot_convolution_is_that_of_its_equation() -> None:
    conv = CenterPivotConv(3, 4, kernel=3, stride=2).double()
    x = torch.randn(2, 3, 4, 5, 5, 6, dtype=torch.float64)
    out = conv(x)
    assert out.shape == (2, 4, 4, 5, 3, 3)
    for b, i, j, u, v in ((0, 0, 0, 0, 0), (1, 3, 2, 1, 2), (0, 2, 4, 2, 1)):
        padded = F.pad(x[b, :, :, :, 2 * u, 2 * v], (1, 1, 1, 1))
        query = (conv.query.weight * padded[:, i : i + 3, j : j + 3]).sum((1, 2, 3)) + conv.query.bias
        padded = F.pad(x[b, :, i, j], (1, 1, 1, 1))
        support = (conv.support.weight * padded[:, 2 * u : 2 * u + 3, 2 * v : 2 * v + 3]).sum((1, 2, 3))
        torch.testing.assert_close(out[b, :, i, j, u, v], query + support + conv.support.bias)

"""BAM against arrays of the published network."""

import pytest
import torch
from torch import Tensor

from model.build import build_model
from model.methods.bam import BAM
from model.parts.ensemble import scene_difference
from model.released import load_weights, released_state_dict
from tests.data import golden_rule
from tests.model.methods import recorded
from util.config import load_config
from util.errors import UserError

SIZE = 129


@pytest.fixture(scope="module")
def model() -> BAM:
    model = recorded.published("bam_resnet50_1s", "resnet50_bam", SIZE)
    assert isinstance(model, BAM)
    return model


@torch.inference_mode()
def assert_reproduced(model: BAM, name: str, shot: int) -> None:
    expected = recorded.arrays(name)
    query = golden_rule.images(1, SIZE, 3)
    support, mask = golden_rule.images(shot, SIZE, 4)[None], golden_rule.masks(shot, SIZE)[None]
    embedded, state = model.embed_query(query), model.encode_support(support, mask)
    difference = scene_difference(embedded["gram"], state["gram"])
    weights = model.ensemble.weights(difference)
    recorded.assert_close((weights * difference).sum(1).view(1, 1, 1), expected["difference"])
    recorded.assert_close((weights[..., None] * state["prototype"]).sum(1), expected["prototype"])
    recorded.assert_close(model.prior(embedded, state, weights), expected["prior"], 5e-5)
    scores = model.score(embedded, state)
    recorded.assert_close(scores.meta, expected["meta"])
    recorded.assert_close(scores.at(SIZE)[..., ::4, ::4], expected["out"])
    if "base" in expected:
        assert scores.base is not None
        recorded.assert_close(scores.base, expected["base"])
    empty = model.encode_support(support, torch.where(mask == 1, 0, mask))
    recorded.assert_close(model.score(embedded, empty).at(SIZE)[..., ::4, ::4], expected["empty_out"])


def test_one_shot_reproduces_the_original(model: BAM) -> None:
    assert_reproduced(model, "bam_resnet50_1s", 1)


def test_five_shots_reproduce_the_original(model: BAM) -> None:
    five = build_model(load_config("config/pascal/pascal_split0_resnet50_bam_5s.yaml"), pretrained=False)
    assert isinstance(five, BAM)
    weights, shapes = released_state_dict(model), recorded.shapes("bam_resnet50_5s")
    added = golden_rule.weights({key: shape for key, shape in shapes.items() if key not in weights})
    load_weights(five, {**weights, **added})
    assert {key: list(value.shape) for key, value in released_state_dict(five).items()} == shapes
    assert_reproduced(five.eval(), "bam_resnet50_5s", 5)


def truths(batch: int) -> tuple[Tensor, Tensor]:
    truth = golden_rule.masks(batch, SIZE).long()
    truth[..., -(SIZE // 8) :] = 255
    base = torch.where(truth == 1, torch.arange(5, 5 + batch).view(-1, 1, 1), 0)
    base[..., -(SIZE // 4) :] = 2
    return truth, torch.where(truth == 255, 255, base)


def test_training_reproduces_the_original(model: BAM) -> None:
    expected, (truth, base_truth) = recorded.arrays("bam_resnet50_1s"), truths(2)
    scores = recorded.training_scores(model, SIZE, 2, torch.tensor([4, 5]))
    losses = model.losses(scores.resize(SIZE), truth, base_truth)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[f"loss/{name}"].item(), rel=1e-5)
    total = torch.stack([*losses.values()]).sum()
    assert total.item() == pytest.approx(expected["loss/total"].item(), rel=1e-5)
    total.backward()
    recorded.assert_gradients(model, expected)
    assert [*model.losses(scores, truth)] == ["final", "meta"]


@torch.inference_mode()
def test_weights_of_vgg_load_and_segment() -> None:
    model = recorded.published("bam_vgg_1s", "vgg_bam", 65, drawn=False)
    scores = model(torch.randn(1, 3, 65, 65), torch.randn(1, 2, 3, 65, 65), torch.ones(1, 2, 65, 65))
    assert scores.final.shape == (1, 2, 65, 65)
    assert scores.final.isfinite().all()
    with torch.device("meta"):
        five = build_model(load_config("config/coco/coco_split0_vgg_bam_5s.yaml"), pretrained=False)
    added = {f"kshot_rw.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert released_state_dict(five).keys() == recorded.shapes("bam_vgg_1s").keys() | added


def small(**keys: object) -> BAM:
    words = [str(word) for pair in {"backbone": "tiny", "width": 16, **keys}.items() for word in pair]
    model = build_model(load_config("config/pascal/pascal_split0_resnet50_bam.yaml", words), pretrained=False)
    assert isinstance(model, BAM)
    return model.eval()


@pytest.mark.parametrize(("hidden", "names"), [(2, 4), (0, 1)])
@torch.inference_mode()
def test_weights_belong_to_their_shots_and_to_their_number(hidden: int, names: int) -> None:
    model = small(shot=3, kshot_trans_dim=hidden)
    assert sum(key.startswith("ensemble.shot_weights") for key in model.state_dict()) == names
    for parameter in model.ensemble.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    query, support = torch.randn(1, 3, 65, 65), torch.randn(1, 4, 3, 65, 65)
    mask = torch.randint(0, 2, (1, 4, 65, 65))
    one = model(query, support[:, :3], mask[:, :3]).final
    order = [2, 0, 1]
    torch.testing.assert_close(model(query, support[:, order], mask[:, order]).final, one)
    assert torch.equal(model(query, support, mask).final, one)  # the first three
    again = [0, 1, 0]
    repeated = model(query, support[:, again], mask[:, again]).final
    torch.testing.assert_close(model(query, support[:, :2], mask[:, :2]).final, repeated)


@torch.inference_mode()
def test_without_weights_over_shots_their_mean_counts() -> None:
    model, query = small(), torch.randn(1, 3, 65, 65)
    support, mask = torch.randn(1, 2, 3, 65, 65), torch.randint(0, 2, (1, 2, 65, 65))
    twice = model(query, support.repeat(1, 2, 1, 1, 1), mask.repeat(1, 2, 1, 1)).final
    torch.testing.assert_close(model(query, support, mask).final, twice)


def test_a_support_costs_no_stage_4_without_its_mask() -> None:
    model, seen = small(), []
    model.backbone.layer4.register_forward_hook(lambda *_: seen.append(1))
    features = model.features(torch.randn(1, 3, 65, 65), "support")
    assert sorted(features) == ["f2", "f3", "gram"]
    assert not seen


def test_a_backbone_without_stages_is_named() -> None:
    with pytest.raises(UserError, match="backbone: BAM runs the last stage on masked features; choose resnet50"):
        small(backbone="timm/test_vit")

"""PFENet against arrays of the published network."""

import pytest
import torch

from model.build import build_model
from model.methods.pfenet import PFENet
from model.resize import resize
from tests.data import golden_rule
from tests.model.methods import recorded
from util.config import load_config

SIZE = 241
SCALES = ("ppm_scales", "[30, 15, 8, 4]")


@pytest.fixture(scope="module")
def model() -> PFENet:
    model = recorded.published("pfenet_resnet50_1s", "resnet50_pfenet", SIZE)
    assert isinstance(model, PFENet)
    model.sides = (30, 15, 8, 4)  # no weight depends on them
    return model


@torch.inference_mode()
def test_it_reproduces_the_original(model: PFENet) -> None:
    expected = recorded.arrays("pfenet_resnet50_1s")
    query, support, mask = recorded.episode(SIZE)
    embedded, state = model.embed_query(query), model.encode_support(support, mask)
    recorded.assert_close(state["prototype"], expected["prototype"])
    recorded.assert_close(resize(model.prior(embedded, state), 30), expected["prior_at_scale0"], 5e-5)
    scores = model.score(embedded, state)
    recorded.assert_close(scores.final, expected["logits"])
    for number, logits in enumerate(scores.auxiliary):
        recorded.assert_close(logits, expected[f"inner{number}"])
    empty = model.encode_support(support, torch.where(mask == 1, 0, mask))
    recorded.assert_close(model.score(embedded, empty).at(SIZE)[..., ::4, ::4], expected["empty_out"])


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
def test_training_reproduces_the_original(model: PFENet, statistics: str) -> None:
    expected = recorded.arrays("pfenet_resnet50_1s")
    truth = golden_rule.masks(2, SIZE).long()
    truth[..., -(SIZE // 8) :] = 255
    model.correct(["frozen_statistics"] * (statistics == "frozen"))
    before = {key: value.clone() for key, value in model.backbone.named_buffers()}
    with torch.set_grad_enabled(statistics == "frozen"):
        losses = model.losses(recorded.training_scores(model, SIZE, 2), truth)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[f"loss_{statistics}_statistics/{name}"].item(), rel=1e-5)
    moved = [key for key, value in model.backbone.named_buffers() if not torch.equal(value, before[key])]
    assert len(moved) == (len(before) if statistics == "batch" else 0)
    model.backbone.load_state_dict(before, strict=False)
    if statistics == "frozen":
        torch.stack([*losses.values()]).sum().backward()
        recorded.assert_gradients(model, expected)


def small(*words: str) -> PFENet:
    words = ("backbone", "tiny", "width", "16", *words)
    model = build_model(load_config("config/pascal/pascal_split0_resnet50_pfenet.yaml", words), pretrained=False)
    assert isinstance(model, PFENet)
    return model.eval()


@torch.no_grad()
def test_batch_norms_see_each_shot_as_a_batch() -> None:
    model = recorded.without_dropout(small(*SCALES))
    query, support = torch.randn(2, 3, 65, 65), torch.randn(2, 2, 3, 65, 65)
    mask = torch.randint(0, 2, (2, 2, 65, 65))
    one, two = (model(query, support[:, k : k + 1], mask[:, k : k + 1]) for k in range(2))
    both, state = model._features_of_episodes(query, support)[1], {}
    state = model.support_state(model.embed(both, "support"), mask)
    for k in range(2):
        alone = model._features_of_episodes(query, support[:, k : k + 1])[1]
        expected = model.support_state(model.embed(alone, "support"), mask[:, k : k + 1])
        torch.testing.assert_close(state["f4"][:, k], expected["f4"][:, 0])
    assert not torch.equal(one.final, two.final)


@torch.inference_mode()
def test_shots_are_averaged_and_their_order_does_not_matter() -> None:
    model, query = small(*SCALES), torch.randn(2, 3, 65, 65)
    support, mask = torch.randn(2, 5, 3, 65, 65), torch.randint(0, 2, (2, 5, 65, 65))
    final = model(query, support, mask).final
    torch.testing.assert_close(model(query, support.flip(1), mask.flip(1)).final, final, atol=1e-5, rtol=1e-4)
    states = [model.encode_support(support[:, k : k + 1], mask[:, k : k + 1]) for k in range(5)]
    mean = torch.stack([state["prototype"] for state in states]).mean(0)
    torch.testing.assert_close(model.encode_support(support, mask)["prototype"], mean)


@torch.inference_mode()
def test_of_a_model_of_timm_the_last_stage_sees_what_is_under_the_mask() -> None:
    model = small("backbone", "timm/test_efficientnet", *SCALES)
    image, mask = torch.randn(1, 3, 65, 65), torch.ones(1, 1, 65, 65)
    whole = model.features(image, "query")["f4"]
    torch.testing.assert_close(model.encode_support(image[None], mask)["f4"][0], whole)
    mask[..., 30:] = 0
    assert not torch.equal(model.encode_support(image[None], mask)["f4"][0], whole)
    assert model(image, image[None], mask).final.isfinite().all()


@pytest.mark.parametrize(("scales", "sides"), [("[60, 3]", [60, 3]), ("[1.0, 0.5, 0.125]", [9, 4, 1])])
@torch.inference_mode()
def test_scales_are_sides_or_shares_of_the_feature(scales: str, sides: list[int]) -> None:
    model = small("ppm_scales", scales)
    scores = model(torch.randn(1, 3, 65, 65), torch.randn(1, 1, 3, 65, 65), torch.ones(1, 1, 65, 65))
    assert [logits.shape[-1] for logits in scores.auxiliary] == sides
    assert scores.final.isfinite().all()


def test_other_backbones_have_their_published_tensors() -> None:
    with torch.device("meta"):
        model = build_model(load_config("config/coco/coco_split0_vgg_pfenet.yaml"), pretrained=False)
    own = {key for key in recorded.shapes("pfenet_resnet50_1s") if not key.startswith("layer")}
    vgg = {key: shape for key, shape in recorded.shapes("bam_vgg_1s").items() if key.startswith("layer")}
    state = recorded.released_state_dict(model)
    assert state.keys() == own | vgg.keys()
    assert state["down_query.0.weight"].shape == (256, 768, 1, 1)

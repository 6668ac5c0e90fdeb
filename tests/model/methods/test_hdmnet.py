"""HDMNet against arrays of the published network."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.methods.hdmnet import HDMNet, distillation
from model.parts.ensemble import scene_difference
from model.parts.pyramid import Matching
from model.tensors import tensors
from tests.data import golden_rule
from tests.model.methods import recorded

SIZE = 129


@pytest.fixture(scope="module")
def model() -> HDMNet:
    model = recorded.published("hdmnet_resnet50_1s", "resnet50_hdmnet", SIZE)
    assert isinstance(model, HDMNet)
    return model


@torch.inference_mode()
def test_it_reproduces_the_original(model: HDMNet) -> None:
    expected = recorded.arrays("hdmnet_resnet50_1s")
    query, support, mask = recorded.episode(SIZE)
    queries, state = model.embed_query(query), model.encode_support(support, mask)
    recorded.assert_close(10 * model.priors(queries, state), expected["similarity_x10"])
    recorded.assert_close(scene_difference(queries["gram"], state["gram"])[..., None], expected["difference"])
    captured: dict[str, Tensor] = {}
    model.matches[0].register_forward_hook(lambda _module, _inputs, out: captured.update(fine=out[0]))
    scores = model.score(queries, state)
    recorded.assert_close(captured["fine"][:, ::8], expected["matched_fine"])
    for name, correlation in zip(("coarse", "middle", "fine"), scores.auxiliary, strict=True):
        recorded.assert_close(correlation, expected[f"correlation_{name}"])
    recorded.assert_close(scores.meta, expected["meta"])
    recorded.assert_close(scores.at(SIZE)[..., ::2, ::2], expected["out"])
    empty = model.score(queries, model.encode_support(support, torch.where(mask == 1, 0, mask)))
    recorded.assert_close(empty.at(SIZE)[..., ::4, ::4], expected["empty_out"])


def test_training_reproduces_the_original(model: HDMNet) -> None:
    expected = recorded.arrays("hdmnet_resnet50_1s")
    scores = recorded.training_scores(model, SIZE, 2, torch.tensor([4, 5]))
    truth = golden_rule.masks(2, SIZE).long()
    truth[..., -(SIZE // 8) :] = 255
    base_truth = torch.zeros_like(truth)
    for sample in range(2):
        base_truth[sample][truth[sample] == 1] = 5 + sample
    base_truth[..., -(SIZE // 4) :] = 2
    base_truth[truth == 255] = 255
    losses = model.losses(scores, truth, base_truth)
    for name, own in (("final_plus_meta", ("final", "meta")), ("distillation", ("distillation",)), ("base", ("base",))):
        assert sum(losses[x].item() for x in own) == pytest.approx(expected[f"loss/{name}"].item(), rel=1e-5), name
    total = torch.stack([*losses.values()]).sum()
    assert total.item() == pytest.approx(expected["loss/total"].item(), rel=1e-5)
    total.backward()
    names = {key.replace("transformer.", "transformer.mix_transformer."): norm for key, norm in expected.items()}
    recorded.assert_gradients(model, names)
    assert "base" not in model.losses(scores, truth)


def test_batch_norms_never_collect_statistics(model: HDMNet) -> None:
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 60 and not any(norm.training for norm in norms)
    assert model.pyramid.training and model.base_learner.dropout.training


def test_weights_over_shots_stay_as_they_are() -> None:
    five = recorded.published("hdmnet_resnet50_5s", "resnet50_hdmnet_5s", SIZE, drawn=False)
    assert not any(p.requires_grad for p in five.ensemble.shot_weights.parameters())
    assert five.shot == 5 and not five.ensemble.shot_weights.unsort


@torch.inference_mode()
def test_the_backbone_sees_the_object_of_a_support_alone(model: HDMNet) -> None:
    """So no map of a whole support is of use, and what is around its object changes nothing."""
    assert model.maps_in("support") == () and model.maps_in("query") == model.maps
    support, mask = torch.randn(1, 1, 3, 33, 33), torch.randint(0, 2, (1, 1, 33, 33))
    other = torch.where(mask.unsqueeze(2) == 1, support, torch.randn(1, 1, 3, 33, 33))
    states = [[*tensors(model.eval().encode_support(images, mask))] for images in (support, other)]
    assert all(map(torch.equal, *states))


@torch.inference_mode()
def test_support_tokens_spread_over_the_query() -> None:
    """Matching against the paper's equations, in which all tokens of all shots take part and masked ones are cut."""
    match, q, s = Matching(16, 2).eval(), torch.randn(2, 4, 4, 16), torch.randn(6, 4, 4, 16)
    masks = torch.randint(0, 2, (2, 3, 8, 8))
    masks[1, 2] = 0
    captured: dict[str, Tensor] = {}
    match.layer.attention.out.register_forward_hook(lambda _module, inputs, _out: captured.update(mixed=inputs[0]))
    _, correlation = match(q, match.remember(s, masks), torch.randn(2, 2, 4, 4))
    attention, norm = match.layer.attention, match.layer.norm1
    for sample in range(2):
        tokens, mask = s[3 * sample : 3 * sample + 3].flatten(0, 2), masks[sample, :, ::2, ::2].flatten().float()
        mixed, total = [], torch.zeros(16)
        for head in (slice(0, 8), slice(8, 16)):
            query = F.normalize(attention.query(norm(q[sample].flatten(0, 1)))[:, head], dim=1)
            key = F.normalize(attention.key(norm(tokens))[:, head], dim=1)
            scores = query @ key.T / 0.1
            mixed.append((scores.softmax(0) * mask) @ attention.value(norm(tokens))[:, head])
            total += (scores * mask).sum(1) / (mask.sum() + 1e-9) / 2
        torch.testing.assert_close(captured["mixed"][sample].flatten(0, 1), torch.cat(mixed, 1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(correlation[sample].flatten(), total, atol=1e-5, rtol=1e-4)


def test_distillation_teaches_from_coarse_to_fine() -> None:
    coarse, fine = torch.randn(2, 3, 3, requires_grad=True), torch.randn(2, 6, 6, requires_grad=True)
    truth = torch.tensor([0, 1, 255]).repeat(2, 12, 4)
    targets = torch.where(truth == 1, 1.0, -1e9)
    total = torch.zeros(())
    for student, teacher in ((coarse, targets), (fine, coarse.detach())):
        small = F.interpolate(teacher[:, None], student.shape[-2:], mode="bilinear").flatten(1).softmax(1)
        total = total + F.kl_div(student.flatten(1).log_softmax(1), small, reduction="sum") / 2
    torch.testing.assert_close(distillation([coarse, fine], truth), total, atol=1e-5, rtol=1e-4)
    none = distillation([fine], torch.zeros(2, 12, 12))  # no foreground: every position is taught the same
    uniform = F.kl_div(fine.flatten(1).log_softmax(1), torch.full((2, 36), 1 / 36), reduction="sum") / 2
    torch.testing.assert_close(none, uniform, atol=1e-5, rtol=1e-4)

"""What is done instead of quirks of published code, against a statement of each rule of its own."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.transform import fit_image
from model.methods import METHODS
from model.methods.sccan import Block
from tests.model.methods.recorded import without_dropout
from tests.model.methods.test_every_method import NAMES, episode, small
from tests.toy import ROOT
from util.errors import UserError
from util.image import MEAN, STD, normalise


def pair(name: str, correction: str, **keys: object) -> tuple[Any, Any, int]:
    """The same network as published and as corrected, and the side of its images."""
    (published, size), (corrected, _) = small(name, **keys), small(name, corrections=f"[{correction}]", **keys)
    corrected.load_state_dict(published.state_dict())
    return published, corrected, size


@pytest.mark.parametrize("name", NAMES)
def test_a_correction_of_another_method_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"corrections: 'nonsense' is none of \w+'s; choose of: "):
        small(name, corrections="nonsense")
    assert all("\n" not in text and text for text in METHODS[name].corrections.values())


@pytest.mark.parametrize("name", ["BAM", "PFENet", "SCCAN"])
def test_padding_is_grey(name: str) -> None:
    published, corrected, _ = pair(name, "mean_padding")
    image = np.full((20, 40, 3), 7, np.float32)
    black, grey = (normalise(fit_image(image, 48, model.images)) for model in (published, corrected))
    assert torch.equal(grey[:, 24:], torch.zeros(3, 24, 48))
    torch.testing.assert_close(black[:, 24:], torch.from_numpy(-MEAN / STD)[:, None, None].expand(3, 24, 48))
    assert torch.equal(grey[:, :24], black[:, :24])


def test_training_images_are_cropped() -> None:
    published, corrected, _ = pair("HDMNet", "cropped_images")
    assert (published.images.augment, corrected.images.augment) == ("squash", "crop")
    assert corrected.images._replace(augment="squash") == published.images


@pytest.mark.parametrize("name", ["HMNet", "BAM", "HDMNet"])
def test_the_base_learner_is_the_same_in_training(name: str) -> None:
    for model, steady in zip(pair(name, "steady_base_learner")[:2], (False, True), strict=True):
        f5 = torch.randn(1, 512, 4, 4)
        once, again = (model.train().base_learner.classify(f5) for _ in range(2))
        assert torch.equal(once, model.eval().base_learner.classify(f5)) == torch.equal(once, again) == steady


def test_statistics_of_the_backbone_stay() -> None:
    for model, frozen in zip(pair("PFENet", "frozen_statistics")[:2], (False, True), strict=True):
        before = deepcopy(model.backbone.state_dict())
        inputs = episode(65)
        scores = without_dropout(model)(*inputs)
        assert all(torch.equal(x, before[key]) for key, x in model.backbone.state_dict().items()) == frozen
        assert torch.allclose(scores.final, model.eval()(*inputs).final, atol=1e-5) == frozen


@torch.inference_mode()
def test_no_scale_is_finer_than_the_features() -> None:
    published, corrected, size = pair("PFENet", "scales_within_map", ppm_scales=[60, 5, 3])
    usual, _ = small("PFENet", ppm_scales=[9, 5, 3])  # 65 pixels have 9 positions a side
    usual.load_state_dict(published.state_dict())
    inputs = episode(size)
    scores = corrected(*inputs)
    assert [x.shape[-1] for x in scores.auxiliary] == [9, 5, 3]
    torch.testing.assert_close(scores.final, usual(*inputs).final)
    assert (scores.final - published(*inputs).final).abs().max() > 1e-6


def test_own_batch_norms_collect_statistics() -> None:
    for model, collects in zip(pair("HDMNet", "own_statistics")[:2], (False, True), strict=True):
        norm = model.matches[0].merge[1]
        seen: list[Tensor] = []
        norm.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        without_dropout(model)(*episode(65))
        mean = seen[0].mean((0, 2, 3)) if collects else torch.zeros(64)
        torch.testing.assert_close(norm.running_mean, norm.momentum * mean)
        frozen = [m for part in (model.backbone, model.base_learner) for m in part.modules()]
        assert not any(m.training for m in frozen if isinstance(m, nn.BatchNorm2d))


def test_weights_over_shots_learn() -> None:
    for model, learn in zip(pair("HDMNet", "trained_shot_weights", shot=2)[:2], (False, True), strict=True):
        trained = {id(p) for group in model.parameter_groups() for p in group}
        assert all((id(p) in trained) == p.requires_grad == learn for p in model.ensemble.shot_weights.parameters())
        without_dropout(model)(*episode(65, shot=2)).final[:, 0].sum().backward()
        assert all((p.grad is not None) == learn for p in model.ensemble.shot_weights.parameters())


@torch.inference_mode()
def test_corners_are_aligned() -> None:
    published, corrected, size = pair("HDMNet", "aligned_corners")
    inputs, truth = episode(size), episode(size)[2][:, 0].long()
    for model, aligned in ((published, False), (corrected, True)):
        state, query = model.encode_support(*inputs[1:]), model.embed_query(inputs[0])
        parsed: list[tuple[Tensor, Tensor]] = []
        for match in model.matches:
            match.parse.register_forward_hook(lambda _module, ins, out, parsed=parsed: parsed.append((ins[0], out)))
        z, fine = None, list[Tensor]()
        hooks = [m.register_forward_hook(lambda _m, _i, out, fine=fine: fine.append(out[0])) for m in model.matches]
        scores = model.score(query, state)
        for y, (given, out) in zip(fine, parsed, strict=True):
            if z is None:
                z = F.relu(out)
                continue
            z = F.interpolate(z, size=y.shape[-2:], mode="bilinear", align_corners=aligned)
            torch.testing.assert_close(given, y + z)
            z = z + F.relu(out)
        for hook in hooks:
            hook.remove()
        teacher, total = torch.where(truth == 1, 1.0, -1e9), torch.zeros(())
        for student in scores.auxiliary:
            teacher = F.interpolate(teacher[:, None], student.shape[-2:], mode="bilinear", align_corners=aligned)
            target = teacher.flatten(1).softmax(1)
            total += F.kl_div(student.flatten(1).log_softmax(1), target, reduction="sum") / len(truth) / 3
            teacher = student
        loss = model.losses(scores.resize(size), truth)["distillation"]
        torch.testing.assert_close(loss, total, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_half_of_all_shots_must_agree() -> None:
    published, corrected, size = pair("HSNet", "majority_of_shots")
    query, support, mask = episode(size, shot=5)
    votes = torch.stack([published(query, support[:, k : k + 1], mask[:, k : k + 1]).at(size) for k in range(5)])
    count = (votes[:, :, 1] > votes[:, :, 0]).sum(0)  # (B, size, size)
    shown = corrected(query, support, mask)
    for found in (shown.at(size), shown.final):
        assert torch.equal(found.argmax(1), (count >= 3).long())
    assert torch.equal(shown.margin_at(size) > 0, count >= 3)
    largest = count.amax((1, 2), keepdim=True).clamp(min=1)
    assert torch.equal(published(query, support, mask).at(size).argmax(1), (2 * count >= largest).long())


@pytest.mark.parametrize("name", ["HSNet", "DCAMA"])
@torch.inference_mode()
def test_ignored_pixels_count_for_nothing(name: str) -> None:
    published, corrected, size = pair(name, "ignored_pixels")
    inputs, truth = episode(size), episode(size)[2][:, 0].long()
    truth[:, size // 2 :] = 255
    scores = published(*inputs)
    pixels = scores.final.movedim(1, -1)[truth != 255]  # (pixels, 2)
    expected = F.cross_entropy(pixels, truth[truth != 255])
    torch.testing.assert_close(corrected.losses(scores, truth)["cross_entropy"], expected)
    background = F.cross_entropy(scores.final, torch.where(truth == 255, 0, truth))
    torch.testing.assert_close(published.losses(scores, truth)["cross_entropy"], background)


@torch.inference_mode()
def test_padding_of_windows_is_not_attended_to() -> None:
    """A map of one whole window around which there is padding: each shifted window attends to its quarter alone."""
    block = Block(32, shifted=True, masked=True).eval()
    q, s = torch.randn(1, 8, 8, 32), torch.randn(1, 8, 8, 32)
    mask = torch.zeros(1, 8, 8, 1)
    mask[:, :4, :4] = 1  # so the support's first window is the only one
    memory = block.remember(s, mask)
    mixed: dict[str, Tensor] = {}
    block.query_attention.register_forward_hook(lambda _module, _inputs, out: mixed.update(query=out))
    block.support_attention.register_forward_hook(lambda _module, _inputs, out: mixed.update(support=out))
    block(q, memory)
    block.encode_support(s, memory)
    quarters = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))]
    other = block.norm1(s)[0, :4, :4].flatten(0, 1)
    for window, place in enumerate([*quarters, (slice(4, 8), slice(4, 8))]):
        rows, columns = (slice(4, 8) if part.start == 0 else slice(0, 4) for part in place)  # within the window
        for what, x, attention in (("query", q, block.query_attention), ("support", s, block.support_attention)):
            own = block.norm1(x)[0][place].flatten(0, 1)  # (16, 32), one head
            key, value = attention.kv(own).split(32, dim=1)
            logits = attention.q(own) @ key.T / 32**0.5
            if what == "query":
                key, fetched = attention.kv(other).split(32, dim=1)
                cosines = F.cosine_similarity(attention.q(own)[:, None], key[None], dim=2)
                logits, value = torch.cat([logits, cosines], 1), torch.cat([value, fetched])
            found = mixed[what][0, window].view(8, 8, 32)[rows, columns].flatten(0, 1)
            torch.testing.assert_close(found, attention.proj(logits.softmax(1) @ value), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_windows_without_padding_are_as_published() -> None:
    published, corrected, size = pair("SCCAN", "masked_padding", width=32)
    inputs = episode(size)
    assert (published(*inputs).final - corrected(*inputs).final).abs().max() > 1e-6
    for model in (published, corrected):
        model.blocks = model.blocks[:1]
    assert torch.equal(published(*inputs).final, corrected(*inputs).final)


@torch.inference_mode()
def test_gram_maps_are_of_unit_vectors() -> None:
    published, corrected, size = pair("FSSDINO", "unit_gram")
    query, support, mask = episode(size, batch=1)
    features, state = corrected.embed_query(query), corrected.encode_support(support, mask)
    level = features[corrected.level][0].flatten(1)  # (C, n)
    scores = []
    for prototypes, vectors in zip(state.prototypes[0], (0, 1), strict=True):
        rows = support_rows(corrected, support, mask, vectors)
        gram = F.normalize(rows, dim=1).T @ F.normalize(rows, dim=1) / len(rows)
        unit = F.normalize(level, dim=0)
        value = (unit * (gram @ unit)).sum(0)
        value = (value - value.min()) / (value.max() - value.min() + 1e-8)
        cosines = F.cosine_similarity(prototypes[:, :, None], level[None], dim=1)
        maps = torch.cat([cosines, value[None]]).unflatten(1, features[corrected.level].shape[-2:])
        maps = F.interpolate(maps[None], (size, size), mode="bilinear", align_corners=False)[0]
        scores.append(maps.amax(0) * maps.mean(0))
    torch.testing.assert_close(corrected.score(features, state).final[0], torch.stack(scores), atol=1e-5, rtol=1e-4)
    assert (published.score(features, state).final[0] - torch.stack(scores)).abs().max() > 1e-4


def support_rows(model: Any, support: Tensor, mask: Tensor, value: int) -> Tensor:
    """Vectors of the support's positions in one class, (n, C)."""
    level = model.features(support[0], "support")[model.level]
    coarse = F.interpolate(mask.float(), level.shape[-2:])[0, 0]
    return level[0].movedim(0, -1)[coarse == value]


@torch.inference_mode()
def test_features_are_taken_behind_the_last_norm() -> None:
    keys = {"backbone": "timm/test_vit", "train_h": 96, "train_w": 96, "val_size": 96}
    published, corrected, _ = pair("FSSDINO", "last_norm", **keys)
    image = torch.randn(1, 3, 96, 96)
    before, behind = (model.features(image, "query")[model.level] for model in (published, corrected))
    norm = next(m for m in reversed([*published.backbone.modules()]) if isinstance(m, nn.LayerNorm))
    expected = F.layer_norm(before.movedim(1, -1), before.shape[1:2], norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(behind, expected.movedim(-1, 1), atol=1e-4, rtol=1e-3)


def test_the_documentation_names_every_correction() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    for name, method in METHODS.items():
        for correction in method.corrections:
            assert any(f"[{correction}]" in line and name.removesuffix("AMP") in line for line in text.splitlines())

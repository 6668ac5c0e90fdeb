"""What holds for every method alike, with a small backbone and random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.build import build_model
from model.inference import FeatureCache
from model.methods import METHODS
from model.methods.hsnet import Votes
from model.methods.method import Method, Scores
from model.tensors import expand
from tests.model.methods.recorded import without_dropout
from util.config import load_config

CONFIGS = Path(__file__).parents[3] / "config"
SMALL = {"backbone": "tiny", "width": 16, "blocks": 2, "feature_size": 8, "scan": "reference", "base_lr": 1e-3}
NAMES = sorted({kind: name for name, kind in reversed(METHODS.items())}.values())

WITH_IGNORED = ("adapt", "HMNetLite")  # for which 255 is no background either


def small(name: str, **keys: object) -> tuple[Method, int]:
    """A method in evaluation mode and the side of its images."""
    plain = name in ("HSNet", "DCAMA")  # whose images do not have 8m + 1 pixels
    size = 64 if plain else 65
    sizes = {"train_h": size, "train_w": size, "val_size": size, "output_stride": 32 if plain else 8}
    words = [str(word) for pair in {**SMALL, "arch": name, **sizes, **keys}.items() for word in pair]
    cfg = load_config(CONFIGS / "base" / "pascal.yaml", words)
    return build_model(cfg, pretrained=False).eval(), size


def episode(size: int, shot: int = 1, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, supports and masks with an object of chance each."""
    mask = torch.zeros(batch, shot, size, size, dtype=torch.uint8)
    for one in mask.flatten(0, 1):
        top, left = torch.randint(0, size // 2, (2,)).tolist()
        one[top : top + size // 3, left : left + size // 3] = 1
    return torch.randn(batch, 3, size, size), torch.randn(batch, shot, 3, size, size), mask


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_a_batch_is_scored_as_its_samples_are(name: str) -> None:
    if name == "adapt":  # a draw in which no sure position lies so near the threshold that rounding could choose others
        torch.manual_seed(14)
    model, size = small(name, shot=2)
    query, support, mask = episode(size, shot=2)
    together = model(query, support, mask)
    assert together.final.shape == together.at(size).shape == (2, 2, size, size)
    assert together.margin_at(size).shape == (2, size, size)
    cache, names = FeatureCache(model, 64), [["q0", "a", "b"], ["q1", "c", "d"]]
    for cached in (cache.scores(query, support, mask, names), cache.scores(query, support, mask, names)):
        assert_equal(cached.resize(size), together)
    state = model.encode_support(support[:1], mask[:1])
    shared = model.score(model.embed_query(query), expand(state, 2))
    for number in range(2):
        alone = model(query[number : number + 1], support[number : number + 1], mask[number : number + 1])
        assert_equal(together.item(number), alone)
        first = model(query[number : number + 1], support[:1], mask[:1])
        assert_equal(shared.item(number).resize(size), first)


def assert_equal(actual: Scores, expected: Scores) -> None:
    """Equal up to rounding, which a discriminant magnifies; of a vote, which rounding may change, the votes' logits."""
    assert type(actual) is type(expected)
    pairs = zip(*(x.auxiliary if isinstance(x, Votes) else (x.final,) for x in (actual, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=3e-4 * max(1, other.abs().max().item()), rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_IGNORED])
@torch.inference_mode()
def test_only_the_value_one_of_a_support_mask_is_foreground(name: str) -> None:
    model, size = small(name)
    query, support, mask = episode(size)
    ignored = torch.where(mask == 1, mask, 255)
    assert torch.equal(model(query, support, ignored).final, model(query, support, mask).final)


@pytest.mark.parametrize("name", NAMES)
def test_steps_lower_the_loss_of_what_trains(name: str) -> None:
    model, size = small(name, shot=2)
    if not model.is_trained:
        return
    optimizers = [each.optimizer for each in model.optimizers(load_config(CONFIGS / "base" / "pascal.yaml")).values()]
    listed = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, listed)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    without_dropout(model)
    inputs, truth = episode(size, shot=2), episode(size)[2][:, 0].long()
    first, last = (sum(loss.item() for loss in losses) for losses in _train(model, inputs, truth, optimizers))
    assert last < first
    assert all(p.grad is None for p in model.backbone.parameters())


def _train(
    model: Method, inputs: tuple[Tensor, ...], truth: Tensor, optimizers: list[torch.optim.Optimizer]
) -> Iterator[list[Tensor]]:
    """The losses before and after a few small steps."""
    for steps in (3, 0):
        losses = [*model.losses(model(*inputs, torch.tensor([0, 1])), truth).values()]
        yield losses
        for _ in range(steps):
            total = torch.stack([*model.losses(model(*inputs, torch.tensor([0, 1])), truth).values()]).sum()
            total.backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 1e-4
                optimizer.step()
                optimizer.zero_grad()


@torch.inference_mode()
def test_the_same_support_again_changes_nothing() -> None:
    for name in ("HSNet", "DCAMA"):
        model, size = small(name)
        query, support, mask = episode(size)
        one = model(query, support, mask)
        again = model(query, support.repeat(1, 3, 1, 1, 1), mask.repeat(1, 3, 1, 1))
        assert torch.equal(again.final.argmax(1), one.final.argmax(1))
        if name == "DCAMA":
            torch.testing.assert_close(again.final, one.final, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_order_of_shots_does_not_matter() -> None:
    for name in ("HSNet", "DCAMA", "HDMNet"):
        model, size = small(name, shot=1)
        query, support, mask = episode(size, shot=3)
        expected = model(query, support, mask).final
        torch.testing.assert_close(model(query, support.flip(1), mask.flip(1)).final, expected, atol=1e-4, rtol=1e-3)
        assert (model(query, support[:, :1], mask[:, :1]).final - expected).abs().max() > 1e-5


@pytest.mark.parametrize("data_set", ["pascal", "coco"])
def test_every_experiment_builds(data_set: str) -> None:
    built = set()
    for file in sorted((CONFIGS / data_set).glob("*.yaml")):
        cfg = load_config(file)
        if (network := cfg.model_copy(update={"split": 0}).to_yaml()) not in built:  # folds have one network
            built.add(network)
            with torch.device("meta"):
                assert METHODS[cfg.arch] is type(build_model(cfg, pretrained=False))
        assert file.stem.startswith(f"{data_set}_split{cfg.split}_{cfg.backbone_name[:3]}")
        assert cfg.shot == (5 if file.stem.endswith("_5s") else 1)

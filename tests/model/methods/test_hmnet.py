"""The whole network against arrays of the original network, and its switches."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from model.build import build_model
from model.loss import episode_loss
from model.methods.hmnet import HMNet
from model.methods.method import Scores
from model.released import load_weights, released_state_dict
from model.resize import resize
from model.tensors import expand
from tests.data import golden_rule
from util.config import load_config

DATA = Path(__file__).parents[2] / "data"


def released(config: str, keys: str, *overrides: str) -> HMNet:
    """A network with the golden rule's weights under the released key names of `keys`."""
    shapes = json.loads((DATA / f"{keys}.keys.json").read_text())
    cfg = load_config(f"config/pascal/pascal_split0_{config}.yaml", overrides)
    model = cast(HMNet, build_model(cfg, pretrained=False))
    load_weights(model, golden_rule.weights(shapes))
    assert {key: list(value.shape) for key, value in released_state_dict(model).items()} == shapes
    return model.eval()


def small(*overrides: str) -> Any:
    sizes = ["backbone", "tiny", "width", "16", "blocks", "2", "feature_size", "8", "scan", "reference"]
    torch.manual_seed(0)
    cfg = load_config("config/pascal/pascal_split0_resnet50_manet.yaml", [*sizes, *overrides])
    return cast(HMNet, build_model(cfg, pretrained=False).eval())


def episode(shot: int = 1, size: int = 65, batch: int = 2) -> dict[str, Tensor]:
    return {
        "query": torch.randn(batch, 3, size, size),
        "support": torch.randn(batch, shot, 3, size, size),
        "support_mask": torch.randint(0, 2, (batch, shot, size, size), dtype=torch.uint8),
    }


def total_loss(scores: Scores, query_mask: Tensor) -> Tensor:
    return torch.stack([*episode_loss(scores, query_mask).values()]).sum()


@torch.inference_mode()
def test_full_network_reproduces_the_original(device: torch.device) -> None:
    expected = {name: torch.from_numpy(array) for name, array in np.load(DATA / "full_r50_1s.npz").items()}
    model = released("resnet50_manet", "full_r50_1s").to(device)
    images = golden_rule.images(1, 129, 3), golden_rule.images(1, 129, 4), golden_rule.masks(1, 129)[None]
    query, support, mask = (x.to(device) for x in images)
    state = model.encode_support(support[None], mask)
    captured: dict[str, Tensor] = {}
    model.trunk.register_forward_hook(lambda _module, _inputs, output: captured.update(trunk=output))
    meta = model.score(model.embed(model.features(query, "query"), "query"), state).meta
    scores = model(query, support[None], mask)
    assert (scores.final.cpu() - expected["out"]).abs().max() < 2e-4
    torch.testing.assert_close(scores.meta, resize(meta, 129))
    assert (meta.cpu() - expected["meta"]).abs().max() < 2e-4
    trunk_out = captured["trunk"].cpu().permute(0, 3, 1, 2)[:, ::16]
    assert (trunk_out - expected["trunk_out"]).abs().max() < 2e-4


@pytest.mark.parametrize(("config", "keys"), [("vgg_manet", "full_vgg_1s"), ("resnet50_manet_5s", "full_r50_5s")])
@torch.inference_mode()
def test_released_keys_load_and_segment(config: str, keys: str) -> None:
    model = released(config, keys, "feature_size", "16")
    shot = 5 if config.endswith("5s") else 1
    scores = model(
        golden_rule.images(1, 65, 3), golden_rule.images(shot, 65, 4)[None], golden_rule.masks(shot, 65)[None]
    )
    for each in (scores.meta, scores.final):
        assert each.shape == (1, 2, 65, 65)
        assert each.isfinite().all()


def test_training_gives_losses_and_gradients_to_what_learns_only() -> None:
    model = small("kshot_trans_dim", "2", "shot", "2").train()
    inputs = episode(shot=2)
    query_mask = torch.randint(0, 3, (2, 65, 65))
    query_mask[query_mask == 2] = 255
    scores = model(**inputs, episode_class=torch.tensor([0, 14]))
    assert scores.meta.shape == scores.final.shape == (2, 2, 65, 65)
    total_loss(scores, query_mask).backward()
    learnable = {id(p) for group in model.parameter_groups() for p in group} | {id(p) for p in model.trunk.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == learnable
    unused = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == {
        f"trunk.blocks.1.support.{name}"
        for name in ("out_proj.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
    }
    frozen = [module for part in (model.backbone, model.base_learner) for module in part.modules()]
    assert [module for module in frozen if module.training] == [model.base_learner.dropout]


def test_meta_training_drops_channels_of_the_base_prediction_only() -> None:
    """As in the released code, whose frozen base learner only has its batch norms at rest; feature "5" is before it."""
    model, images = small(), torch.randn(2, 3, 65, 65)
    quiet = model.eval().features(images, "query")
    model.train()
    torch.testing.assert_close(model.features(images, "query"), quiet)
    rates = []
    model.base_learner.dropout.register_forward_hook(
        lambda _module, inputs, out: rates.append((out == 0)[inputs[0] != 0].float().mean().item())
    )
    for _ in range(40):
        model.base_learner.classify(quiet["f5"])
    assert sum(rates) / len(rates) == pytest.approx(0.1, abs=0.03)
    model.eval()
    model.base_learner.classify(quiet["f5"])
    assert rates[-1] == 0


@torch.inference_mode()
def test_supports_encoded_once_serve_many_queries() -> None:
    model, inputs = small(), episode(batch=3)
    state = model.encode_support(inputs["support"][:1], inputs["support_mask"][:1])
    queries = model.embed(model.features(inputs["query"], "query"), "query")
    together = model.score(queries, expand(state, 3)).resize(65)
    for i in range(3):
        alone = model(inputs["query"][i : i + 1], inputs["support"][:1], inputs["support_mask"][:1])
        for both, one in zip(together[:2], alone[:2], strict=True):
            torch.testing.assert_close(both[i : i + 1], one, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_only_the_value_one_of_a_support_mask_is_foreground() -> None:
    model, inputs = small(), episode()
    scores = model(**inputs)
    inputs["support_mask"][inputs["support_mask"] == 0] = 255
    assert torch.equal(model(**inputs).final, scores.final)


@pytest.mark.parametrize(
    "overrides",
    [
        ("ensemble", "false"),
        ("shot", "3", "kshot_trans_dim", "0"),
        ("shot", "3", "kshot_unsort", "true"),
        ("qim_skip", "channel"),
        ("blocks", "3", "state_size", "8", "width", "32"),
        ("self_blocks", "false", "blocks", "1"),
        ("srm", "none", "qim", "none"),
        ("srm", "basic", "qim", "none"),
        ("srm", "none", "qim", "basic"),
        ("qim", "none", "shot", "5"),
        ("fusion", "concat", "shot", "5"),
        ("fusion", "cross_attention"),
        ("fusion", "self_calibrated", "shot", "2"),
        ("stem", "torchvision"),
        ("checkpoint_blocks", "true"),
    ],
)
def test_every_switch_builds_and_trains(overrides: tuple[str, ...]) -> None:
    model = small(*overrides).train()
    shot = int(dict(zip(overrides[::2], overrides[1::2], strict=True)).get("shot", 1))
    scores = model(**episode(shot), episode_class=torch.tensor([1, 2]))
    total_loss(scores, torch.randint(0, 2, (2, 65, 65))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_released_switches_change_what_they_say() -> None:
    inputs = episode(shot=1)
    for key, value in (("qim_skip", "channel"), ("srm", "basic"), ("qim", "none")):
        default, changed = small(), small(key, value)
        for parameter in default.trunk.blocks[1].scan.parameters():
            torch.nn.init.normal_(parameter)
        changed.load_state_dict(default.state_dict())
        assert (default(**inputs).final - changed(**inputs).final).abs().max() > 1e-5, key


@torch.inference_mode()
def test_one_shot_weights_serve_more_supports() -> None:
    one, inputs = small(), episode()
    five = small("shot", "5", "trained_shot", "1")
    load_weights(five, one.state_dict())
    repeated = {key: x.repeat_interleave(5, dim=1) if "support" in key else x for key, x in inputs.items()}
    torch.testing.assert_close(five(**repeated), one(**inputs), atol=1e-5, rtol=1e-4)

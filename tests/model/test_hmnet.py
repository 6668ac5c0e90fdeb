"""The whole network against arrays of the original network, and its switches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import build_model
from model.hmnet import HMNet
from tests.data import golden_rule
from util.checkpoint import load_weights, released_state_dict
from util.config import load_config

DATA = Path(__file__).parents[1] / "data"


def released(config: str, keys: str, *overrides: str) -> HMNet:
    """A network with the golden rule's weights under the released key names of `keys`."""
    shapes = json.loads((DATA / f"{keys}.keys.json").read_text())
    model = build_model(load_config(f"config/pascal/pascal_split0_{config}.yaml", overrides), pretrained=False)
    load_weights(model, golden_rule.weights(shapes))
    assert {key: list(value.shape) for key, value in released_state_dict(model).items()} == shapes
    return model.eval()


def small(*overrides: str) -> HMNet:
    sizes = ["backbone", "tiny", "width", "16", "blocks", "2", "feature_size", "8", "scan", "reference"]
    torch.manual_seed(0)
    cfg = load_config("config/pascal/pascal_split0_resnet50_manet.yaml", [*sizes, *overrides])
    return build_model(cfg, pretrained=False).eval()


def episode(shot: int = 1, size: int = 65, batch: int = 2) -> dict[str, Tensor]:
    return {
        "query": torch.randn(batch, 3, size, size),
        "support": torch.randn(batch, shot, 3, size, size),
        "support_mask": torch.randint(0, 2, (batch, shot, size, size), dtype=torch.uint8),
    }


@torch.inference_mode()
def test_full_network_reproduces_the_original() -> None:
    expected = {name: torch.from_numpy(array) for name, array in np.load(DATA / "full_r50_1s.npz").items()}
    model = released("resnet50_manet", "full_r50_1s")
    query, support = golden_rule.images(1, 129, 3), golden_rule.images(1, 129, 4)
    frozen = model.extract(query)
    state = model.encode_support(support[None], golden_rule.masks(1, 129)[None])
    captured: dict[str, Tensor] = {}
    model.trunk.register_forward_hook(lambda _module, _inputs, output: captured.update(trunk=output))
    meta, _ = model.score(model.as_query(frozen), state)
    out = model(query, support[None], golden_rule.masks(1, 129)[None])
    assert (out - expected["out"]).abs().max() < 2e-4
    assert (meta - expected["meta"]).abs().max() < 2e-4
    trunk_out = captured["trunk"].permute(0, 3, 1, 2)[:, ::16]
    assert (trunk_out - expected["trunk_out"]).abs().max() < 2e-4


@pytest.mark.parametrize(("config", "keys"), [("vgg_manet", "full_vgg_1s"), ("resnet50_manet_5s", "full_r50_5s")])
@torch.inference_mode()
def test_released_keys_load_and_segment(config: str, keys: str) -> None:
    model = released(config, keys, "feature_size", "16")
    shot = 5 if config.endswith("5s") else 1
    scores = model(golden_rule.images(1, 65, 3), golden_rule.images(shot, 65, 4)[None], golden_rule.masks(shot, 65)[None])
    assert scores.shape == (1, 2, 65, 65)
    assert scores.isfinite().all()

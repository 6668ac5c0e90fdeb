"""Published networks with weights drawn from their tensors' names, and what they were recorded to give."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.build import build_model
from model.methods.method import Method, Scores
from model.released import load_weights, name_at, released_state_dict
from tests.data import golden_rule
from util.config import load_config

DATA = Path(__file__).parents[2] / "data"


def arrays(name: str) -> dict[str, Tensor]:
    """The recorded arrays of a network, for the most part thinned."""
    with np.load(DATA / f"{name}.npz") as content:
        return {key: torch.from_numpy(array) for key, array in content.items()}


def shapes(name: str) -> dict[str, list[int]]:
    """The names and shapes of a published network's tensors."""
    return json.loads(gzip.decompress((DATA / f"{name}.keys.json.gz").read_bytes()))


def published(keys: str, config: str, size: int, unused: tuple[str, ...] = (), drawn: bool = True) -> Method:
    """The method of a config with drawn weights, or zeros, loaded as from a checkpoint of several processes.

    `unused`: beginnings of the names that the method is to accept without having a place for them.
    """
    overrides = [word for key in ("train_h", "train_w", "val_size") for word in (key, str(size))]
    model = build_model(load_config(f"config/pascal/pascal_split0_{config}.yaml", overrides), pretrained=False)
    known = shapes(keys)
    own = {key: shape for key, shape in known.items() if not key.startswith(unused)} if unused else known
    weights = {key: torch.zeros(()).expand(shape) for key, shape in known.items()}
    weights |= golden_rule.weights(own) if drawn else {}
    load_weights(model, {f"module.{key}": value for key, value in weights.items()})
    assert {key: list(value.shape) for key, value in released_state_dict(model).items()} == own
    return model.eval()


def episode(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query (1, 3, S, S), support (1, 1, 3, S, S) and mask (1, 1, S, S), as the recorded networks saw them."""
    return golden_rule.images(1, size, 3), golden_rule.images(1, size, 4)[None], golden_rule.masks(1, size)[None]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to a share of the largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def training_scores(model: Method, size: int, batch: int, episode_class: Tensor | None = None) -> Scores:
    """Scores of the recorded training batch, in training mode without dropout."""
    without_dropout(model)
    query, support = golden_rule.images(batch, size, 13), golden_rule.images(batch, size, 14).unsqueeze(1)
    return model(query, support, golden_rule.masks(batch, size).unsqueeze(1), episode_class)


def without_dropout(model: Method) -> Method:
    """The method in training mode, but for its dropouts."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    return model


def assert_gradients(model: Method, recorded: Mapping[str, Tensor], prefix: str = "") -> None:
    """The norms of the gradients as recorded under `grad/NAME`, NAME being the beginning of published names."""
    norms = {
        name_at(model.released_names, key): p.grad.norm() for key, p in model.named_parameters() if p.requires_grad
    }
    names = [key for key in recorded if key.startswith("grad/")]
    assert names
    for key in names:
        start = prefix + key.removeprefix("grad/") + "."
        norm = torch.stack([norm for name, norm in norms.items() if name.startswith(start)]).norm()
        assert abs(norm / recorded[key] - 1) < 5e-3, key

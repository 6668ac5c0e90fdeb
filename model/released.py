"""The names that tensors have in other people's checkpoints: HMNet's, the base learner's, ImageNet files.

Modules have good names of their own; the tables here are the one place that knows how others call the same tensors,
and both directions are derived from them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from util.checkpoint import read_checkpoint
from util.errors import UserError

RELEASED_NAMES = (  # (own name, released name), the first match wins
    (r"backbone\.(layer\d)", r"\1"),
    (r"(base_learner|head)\.ppm", r"ppm"),
    (r"(base_learner|head)\.conv", r"cls.0"),
    (r"(base_learner|head)\.bn", r"cls.1"),
    (r"base_learner\.classifier", r"base_learner.2"),
    (r"head\.classifier", r"cls.4"),
    (r"embedding\.query\.0", r"down_query.0"),
    (r"embedding\.support\.0", r"down_supp.0"),
    (r"embedding\.merge_query", r"init_merge_query.0"),
    (r"embedding\.merge_support", r"init_merge_supp.0"),
    (r"trunk\.norm", r"mamba.norm"),
    (r"trunk\.blocks\.(\d+)\.scan\.x_proj", r"mamba.layers.0.blocks.\1.self_attention.x_proj_weight"),
    (r"trunk\.blocks\.(\d+)\.scan\.dt_proj", r"mamba.layers.0.blocks.\1.self_attention.dt_projs_weight"),
    (r"trunk\.blocks\.(\d+)\.scan\.dt_bias", r"mamba.layers.0.blocks.\1.self_attention.dt_projs_bias"),
    (r"trunk\.blocks\.(\d+)\.scan\.A_log", r"mamba.layers.0.blocks.\1.self_attention.A_logs"),
    (r"trunk\.blocks\.(\d+)\.scan\.skip", r"mamba.layers.0.blocks.\1.self_attention.Ds"),
    (r"trunk\.blocks\.(\d+)\.(query|support)\.mlp\.0", r"mamba.layers.0.blocks.\1.mlp_\2.fc1"),
    (r"trunk\.blocks\.(\d+)\.(query|support)\.mlp\.2", r"mamba.layers.0.blocks.\1.mlp_\2.fc2"),
    (r"trunk\.blocks\.(\d+)\.(query|support)\.conv", r"mamba.layers.0.blocks.\1.self_attention.conv2d_\2"),
    (r"trunk\.blocks\.(\d+)\.(query|support)\.(\w+_proj)", r"mamba.layers.0.blocks.\1.self_attention.\3_\2"),
    (r"trunk\.blocks\.(\d+)\.out_norm", r"mamba.layers.0.blocks.\1.self_attention.out_norm"),
    (r"trunk\.blocks\.(\d+)\.(ln_\d)", r"mamba.layers.0.blocks.\1.\2"),
    (r"decoder\.aspp\.branches\.(\d)", r"ASPP_meta.layer6_\1.0"),
    (r"decoder\.merge\.0", r"res1_meta.0"),
    (r"decoder\.refine\.(\d)", r"res2_meta.\1"),
    (r"decoder\.classifier\.(\d)", r"cls_meta.\1"),
    (r"merging\.shot_weights\.transform", r"kshot_rw"),
    (r"merging\.gram_merge", r"gram_merge"),
    (r"merging\.base_merge", r"cls_merge"),
)
FORMER_NAMES = ((r"^embed\.", "embedding."), (r"^ensemble\.", "merging."))  # own names in older snapshots
STACKED = ("scan.A_log", "scan.skip")  # (4, D, ...) here, (4 * D, ...) in released checkpoints
SHOWN_KEYS = 10


def released_name(own: str) -> str:
    """What released checkpoints call the tensor `own`; the same name where they have none for it."""
    for pattern, replacement in RELEASED_NAMES:
        name, found = re.subn(rf"^{pattern}(?=\.|$)", replacement, own)
        if found:
            return re.sub(r"_(query|support)(?=\.|$)", lambda m: f"_{m[1][0]}", name) if "mamba" in name else name
    return own


def released_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under their released names and shapes."""
    state = model.state_dict()
    return {released_name(key): value.flatten(0, 1) if key.endswith(STACKED) else value for key, value in state.items()}


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load all weights of `model` from a checkpoint file or a state dict, under released or own names.

    Prefixes `module.` and a surrounding `state_dict` entry are understood. UserError, with nothing loaded, when the
    file cannot be read or when keys are missing, unexpected or misshapen; the message lists them.
    """
    _complete(model)
    _load(model, *_open(source))


def load_base_learner(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load the frozen parts of HMNet, its children `backbone` and `base_learner`, from a base-learner checkpoint."""
    _complete(model)
    state, where = _open(source)
    state = {re.sub(r"^(cls\.4|head\.classifier)\.", "base_learner.2.", key): value for key, value in state.items()}
    state = {re.sub(r"^head\.", "base_learner.", key): value for key, value in state.items()}
    _load(model, state, where, parts=("backbone.", "base_learner."))


def load_backbone(backbone: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load ImageNet weights, under torchvision's names, into a backbone; the classifier in the file is left out."""
    state, where = _open(source)
    state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    _load(backbone, {_stage_name(key, backbone): value for key, value in state.items()}, where)


def _complete(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Backbone):
            module.complete()


def _open(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    where = str(source) if isinstance(source, str | Path) else "state dict"
    content = read_checkpoint(source) if isinstance(source, str | Path) else source
    content = content.get("state_dict", content)
    state = {key.removeprefix("module."): value for key, value in content.items()}
    for pattern, name in FORMER_NAMES:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    stray = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if stray:
        raise UserError(f"{where}: '{stray[0]}' is not a tensor; expected a state dict, or a checkpoint holding one")
    return state, where


def _load(model: nn.Module, state: dict[str, Tensor], where: str, parts: tuple[str, ...] = ("",)) -> None:
    """Copy `state` into the parameters and buffers of `model` whose names start with one of `parts`."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith(parts)}
    names = {released_name(key): key for key in own} | {key: key for key in own}
    found = {names[key]: value for key, value in state.items() if key in names}
    missing = [released_name(key) for key in own.keys() - found.keys() if not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in names and not key.startswith("encoder.")]
    misshapen = []
    for key, value in found.items():
        if key.endswith(STACKED) and value.numel() == own[key].numel():
            found[key] = value = value.reshape(own[key].shape)
        if value.shape != own[key].shape:
            misshapen.append(f"{released_name(key)} {tuple(value.shape)} instead of {tuple(own[key].shape)}")
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys)
        raise UserError(f"{where}: the weights do not fit this configuration: {listed}")
    for key, value in found.items():
        if key.endswith(".sha256") and not torch.equal(value.cpu(), own[key]):
            raise UserError(
                f"{where}: was trained on other weights of {key.removesuffix('.sha256')} than are here; SHA-256 of the "
                f"tensors {bytes(value.tolist()).hex()[:16]}... instead of {bytes(own[key].tolist()).hex()[:16]}..."
            )
    with torch.no_grad():
        for key, value in found.items():
            own[key].copy_(value)


def _shorten(keys: list[str]) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more


def _stage_name(key: str, backbone: nn.Module) -> str:
    """torchvision's name of a tensor to its name in the five stages."""
    if match := re.match(r"features\.(\d+)\.(.*)", key):
        index, start = int(match[1]), 0
        for stage in range(5):
            length = len(getattr(backbone, f"layer{stage}"))
            if index < start + length:
                return f"layer{stage}.{index - start}.{match[2]}"
            start += length
    if match := re.match(r"(conv|bn)(\d)\.(.*)", key):
        return f"layer0.{3 * (int(match[2]) - 1) + (match[1] == 'bn')}.{match[3]}"
    return key

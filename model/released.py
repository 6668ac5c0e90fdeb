"""The names that tensors have in other people's checkpoints, a table for every source.

Modules have good names of their own; the tables here are the one place that knows how others call the same tensors,
and both directions are derived from them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.backbone.vgg import STAGE_ENDS
from util.checkpoint import read_checkpoint
from util.errors import UserError

# Rows (own name, name at the source), of which the first that matches wins.
NameTable = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

FROZEN: NameTable = (
    (r"backbone\.(layer\d)", r"\1"),
    (r"(base_learner|head)\.ppm", r"ppm"),
    (r"(base_learner|head)\.conv", r"cls.0"),
    (r"(base_learner|head)\.bn", r"cls.1"),
)
BASE_LEARNER: NameTable = (*FROZEN, (r"(base_learner|head)\.classifier", r"cls.4"))  # BAM's
DECODER: NameTable = (  # BAM's and its successors'
    (r"decoder\.aspp\.branches\.(\d)", r"ASPP_meta.layer6_\1.0"),
    (r"decoder\.merge\.0", r"res1_meta.0"),
    (r"decoder\.refine\.(\d)", r"res2_meta.\1"),
    (r"decoder\.classifier\.(\d)", r"cls_meta.\1"),
)
ENSEMBLE: NameTable = (  # BAM's and its successors'
    (r"ensemble\.shot_weights\.transform", r"kshot_rw"),
    (r"ensemble\.gram_merge", r"gram_merge"),
    (r"ensemble\.base_merge", r"cls_merge"),
)
FORMER: NameTable = ((r"ensemble", r"merging"),)  # own names in snapshots of version 0.1
RESNET: NameTable = (  # torchvision's, and those of the deep stem
    (r"layer0\.(\d)", lambda m: f"{('conv', 'bn')[int(m[1]) % 3]}{int(m[1]) // 3 + 1}"),
)
VGG: NameTable = (  # torchvision's
    (r"layer(\d)\.(\d+)", lambda m: f"features.{(-1, *STAGE_ENDS)[int(m[1])] + 1 + int(m[2])}"),
)
DIGEST = ".sha256"  # ending of the name under which checkpoints have the digest of weights that they exclude
SHOWN_KEYS = 10


def name_at(source: NameTable, own: str) -> str:
    """What a source calls the tensor `own`; the same name where it has none for it."""
    for pattern, replacement in source:
        name, found = re.subn(rf"^{pattern}(?=\.|$)", replacement, own)
        if found:
            return name
    return own


def checkpoint_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict as checkpoints hold it: of a frozen timm backbone the digest alone, uint8 (32)."""
    state = model.state_dict()
    for prefix, backbone in _excluded(model):
        state = {key: value for key, value in state.items() if not key.startswith(prefix)}
        state[f"{prefix}{backbone.name}{DIGEST}"] = backbone.digest()
    return state


def released_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under their released names and shapes, which its class states."""
    table, flattened = _published(model)
    state = checkpoint_state(model)
    return {
        name_at(table, key): value.flatten(0, 1) if flattened and key.endswith(flattened) else value
        for key, value in state.items()
    }


def _published(model: nn.Module) -> tuple[NameTable, tuple[str, ...]]:
    """The names of a model's tensors at the source, and the endings of those whose first two dimensions are one there.

    Methods and the base learner's PSPNet state them; other modules have none.
    """
    return getattr(model, "released_names", ()), getattr(model, "flattened_names", ())


def _excluded(model: nn.Module) -> list[tuple[str, Any]]:
    """The backbones whose weights checkpoints exclude, each with the beginning of its tensors' names."""
    return [
        (f"{name}." if name else "", module)
        for name, module in model.named_modules()
        if isinstance(module, Backbone) and module.frozen
    ]


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any], name: str | Path | None = None) -> None:
    """Load all weights of `model` from a checkpoint file or a state dict, under released or own names.

    `name` is what messages call a state dict.
    Prefixes `module.` and `_orig_mod.` and a surrounding `state_dict` entry are understood. UserError, with nothing
    loaded, when the file cannot be read, when keys are missing, unexpected or misshapen (the message lists them), or
    when numbers are not finite.
    """
    state, where = _open(source, name)
    _load(model, state, where, _published(model)[0])


def load_base_learner(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load the frozen parts of HMNet, its children `backbone` and `base_learner`, from a base-learner checkpoint."""
    state, where = _open(source)
    state = {re.sub(r"^head\.", "base_learner.", key): value for key, value in state.items()}
    _load(model, state, where, BASE_LEARNER, parts=("backbone.", "base_learner."))


def load_backbone(backbone: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load ImageNet weights, under torchvision's names, into a backbone; the classifier in the file is left out."""
    state, where = _open(source)
    state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    _load(backbone, state, where, VGG if any(key.startswith("features.") for key in state) else RESNET)


def _open(source: str | Path | Mapping[str, Any], name: str | Path | None = None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file or state dict, and what to call it; UserError unless they are numbers under names."""
    where = str(name or (source if isinstance(source, str | Path) else "state dict"))
    content = read_checkpoint(source) if isinstance(source, str | Path) else source
    content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: its state_dict should hold named tensors, not {_describe(content)}; take another")
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise UserError(
                f"{where}: {key!r} is {_describe(value)}; should be a dense real tensor under a name; take another"
            )
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in content.items()}, where


def _is_plain(value: Any) -> bool:
    """Whether a tensor's numbers can be copied into a parameter."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    return not (value.is_quantized or value.is_complex() or value.is_meta or value.is_nested)


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__}" + (" without entries" if value == {} else "")
    kind = "without data" if value.is_meta else f"{str(value.layout).removeprefix('torch.')} {value.dtype}"
    return f"a tensor {kind}"


def _load(
    model: nn.Module, state: dict[str, Tensor], where: str, source: NameTable, parts: tuple[str, ...] = ("",)
) -> None:
    """Copy `state` into the parameters and buffers of `model` whose names start with one of `parts`."""
    for module in model.modules():
        if isinstance(module, Backbone):
            module.load_excluded_weights()
    own = {key: value for key, value in checkpoint_state(model).items() if key.startswith(parts)}
    flattened = _published(model)[1]
    names = {name_at(table, key): key for table in (FORMER, source) for key in own} | {key: key for key in own}
    found = {names[key]: value for key, value in state.items() if key in names}
    needless = "num_batches_tracked"  # which not every source keeps
    missing = [name_at(source, key) for key in own.keys() - found.keys() if not key.endswith(needless)]
    unused = ("encoder.", *getattr(model, "unused_names", ()))
    unexpected = [k for k in state if k not in names and not k.startswith(unused) and not k.endswith(needless)]
    misshapen = []
    for key, value in found.items():
        if flattened and key.endswith(flattened) and value.numel() == own[key].numel():
            found[key] = value = value.reshape(own[key].shape)
        if value.shape != own[key].shape:
            misshapen.append(f"{name_at(source, key)} {tuple(value.shape)} instead of {tuple(own[key].shape)}")
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys)
        raise UserError(f"{where}: the weights do not fit this configuration: {listed}")
    for key, value in found.items():
        if key.endswith(DIGEST) and not _same_backbone(model, key, value):
            raise UserError(
                f"{where}: was trained on other weights of {key.removesuffix(DIGEST)} than are here; SHA-256 of the "
                f"tensors {_hex(value)}... instead of {_hex(own[key])}..."
            )
        if own[key].is_floating_point() and not value.is_floating_point():
            raise UserError(
                f"{where}: {name_at(source, key)} holds {value.dtype}, not weights; take another checkpoint"
            )
        if not value.float().isfinite().all():
            raise UserError(f"{where}: {name_at(source, key)} holds NaN or infinity; take an earlier checkpoint")
    with torch.no_grad():
        for key, value in found.items():
            own[key].copy_(value)


def _same_backbone(model: nn.Module, key: str, digest: Tensor) -> bool:
    """Whether a digest under the name `key` is that of the model's own excluded backbone."""
    known = [each for prefix, each in _excluded(model) if key == f"{prefix}{each.name}{DIGEST}"]
    return any(torch.equal(digest.cpu(), each.digest(exact)) for each in known for exact in (False, True))


def _hex(digest: Tensor) -> str:
    return bytes(digest.to(torch.uint8).tolist()).hex()[:16]


def _shorten(keys: list[str]) -> str:
    keys = sorted(key if key.isprintable() else ascii(key) for key in keys)
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more

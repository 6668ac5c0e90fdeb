"""Trained networks by name: checkpoints, the zoo, folders that `tools.share` wrote, repositories of the hub."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from engine.origin import checkpoint_config
from model.backbone.build import imagenet_file, load_pretrained
from model.methods.method import Method
from model.released import released_state_dict
from prediction.zoo import entries, nearest_name
from util.checkpoint import read_checkpoint, read_metadata
from util.config import Config, load_config
from util.errors import UserError, first_line

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # of the Hugging Face hub
LEFT_OUT = "left_out_backbone"  # in the metadata of weights: the digest of a backbone that they lack


def open_shared(source: str | Path, overrides: Sequence[str] = (), config: Path | None = None) -> tuple[Config, Path]:
    """Config, with `--opts` on top, and weights of a trained network; for a checkpoint the config may be named.

    `source` is a checkpoint, a name of the zoo, a folder that `tools.share` wrote, or a repository of the Hugging Face
    hub as `user/name`. UserError where it is none of these, something of it is missing, or a config is named for one
    that has its own.
    """
    path = Path(source)
    if path.is_file():
        cfg = load_config(config, overrides) if config else checkpoint_config(path, overrides)
        return cfg, path
    entry = entries().get(str(source))
    if config and (entry or path.is_dir() or REPOSITORY.fullmatch(str(source))):
        raise UserError(f"--config {config}: {source} has its own; leave it out, or change keys of that by --opts")
    if entry:
        return entry.open(overrides)
    folder = path if path.is_dir() else download_repository(str(source))
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{source}: has no {name}; give a folder or repository that `python -m tools.share` wrote")
    return load_config(folder / CONFIG, overrides), folder / WEIGHTS


def add_backbone(cfg: Config, model: Method, weights: str | Path) -> str | Path | dict[str, Tensor]:
    """The weights, with the ImageNet backbone of `initmodel/` where they lack it; UserError where it is another."""
    expected = read_metadata(weights).get(LEFT_OUT)
    if expected is None:
        return weights
    load_pretrained(model.backbone, type(model).configured(cfg))
    own = backbone_tensors(released_state_dict(model))
    if digest(own) != expected:
        raise UserError(f"{weights}: was trained on another backbone than {imagenet_file(cfg)}; fetch torchvision's")
    return {**read_checkpoint(weights), **own}


def backbone_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the backbone among a network's, under their released names."""
    return {name: tensor for name, tensor in state.items() if re.match(r"layer\d\.", name)}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the numbers of tensors, in the order of their names, but for counters."""
    names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
    return hashlib.sha256(b"".join(state[name].float().numpy().tobytes() for name in names)).hexdigest()


def download_repository(name: str) -> Path:
    """The folder that holds a repository's files, fetched unless they are there; UserError says why it is not."""
    if not REPOSITORY.fullmatch(name):
        raise UserError(
            f"{name}: no file or folder, no repository of the Hugging Face hub (user/name), and no name that "
            f"`python -m tools.zoo` prints; nearest is {nearest_name(name)}"
        )
    from huggingface_hub import snapshot_download  # a second that folders do not need

    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except Exception as error:  # of the network, the hub, the cache: many classes of several packages
        raise UserError(f"{name}: could not be fetched from the hub: {first_line(error)}") from error

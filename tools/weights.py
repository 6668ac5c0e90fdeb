"""Which weights are where the configs look for them, and whether they fit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.evaluation import expected_weights, trained_weights
from model.backbone.build import build_backbone, imagenet_file, load_pretrained
from model.build import build_base_learner, build_model
from model.methods import find_method
from model.released import load_weights
from util.config import Config
from util.errors import UserError

KINDS = ("ImageNet", "base learner", "network")


@dataclass(frozen=True)
class Weights:
    """A weight file: what it is, where it belongs, and how it is; the reason where it does not fit."""

    kind: str
    path: Path
    state: Literal["present", "absent", "misfit"]
    reason: str = ""


def list_weights(configs: Sequence[Config]) -> list[Weights]:
    """Look at the ImageNet weights, base learners and meta-trained networks of the configs, each file once."""
    rows: dict[Path, Weights] = {}
    for cfg in configs:
        for kind, path, build, load in _places(cfg):
            if path not in rows:
                rows[path] = _look(kind, path, build, load)
    return sorted(rows.values(), key=lambda row: KINDS.index(row.kind))


def _places(cfg: Config) -> Iterator[tuple[str, Path, Callable[[], Any], Callable[[Any, Path], None]]]:
    """The files of a config: what each is, where it belongs, what builds its network, what loads it."""
    method = find_method(cfg.arch)
    cfg = method.configured(cfg)
    name, (imagenet, base_learner, network) = cfg.backbone_name, KINDS
    if name != "tiny":  # which has no ImageNet weights
        yield imagenet, imagenet_file(cfg), lambda: build_backbone(cfg), lambda model, _: load_pretrained(model, cfg)
    if method.has_base_learner(cfg):
        yield base_learner, cfg.base_learner_path, lambda: build_base_learner(cfg, pretrained=False), load_weights
    for path in dict.fromkeys([*trained_weights(cfg), expected_weights(cfg)]):
        yield network, path, lambda: build_model(cfg, pretrained=False), load_weights


def _look(kind: str, path: Path, build: Callable[[], Any], load: Callable[[Any, Path], None]) -> Weights:
    if not path.is_file():
        return Weights(kind, path, "absent")
    try:
        load(build(), path)
    except UserError as error:
        return Weights(kind, path, "misfit", str(error).removeprefix(f"{path}: "))
    return Weights(kind, path, "present")

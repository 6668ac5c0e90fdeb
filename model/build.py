"""Networks built from a configuration."""

from collections.abc import Callable
from inspect import signature
from itertools import cycle
from pathlib import Path
from typing import TypeVar

from model.backbone import Backbone, build_backbone
from model.backbone.base import StagedBackbone
from model.methods.hmnet import HMNet
from model.parts.base_learner import BaseLearner, PSPNet
from model.parts.fusion import FUSIONS
from model.parts.mamba import HybridBlock, SelfBlock
from model.parts.trunk import Block, Trunk
from model.released import load_backbone, load_base_learner
from util.config import Config
from util.errors import UserError

T = TypeVar("T")
IMAGENET_FILES = {
    ("resnet50", "deep"): "resnet50_v2.pth",
    ("resnet101", "deep"): "resnet101_v2.pth",
    ("resnet50", "torchvision"): "resnet50.pth",
    ("resnet101", "torchvision"): "resnet101.pth",
}


def build_model(cfg: Config, pretrained: bool = True) -> HMNet:
    """HMNet as the configuration describes it.

    With `pretrained`, the frozen parts come from `initmodel/`: the base learner's checkpoint, or ImageNet weights where
    `ensemble` is off; UserError says which file is expected where if it is missing. UserError too for a size of
    images that the backbone cannot see.
    """
    backbone = encoder(cfg, freeze=cfg.base_freeze_backbone if cfg.ensemble else True)
    _check_sizes(cfg, backbone, "train_h", "val_size")
    base_learner = BaseLearner(backbone.channels[-1], cfg.base_class_count) if cfg.ensemble else None
    model = HMNet(
        backbone,
        base_learner,
        build_trunk(cfg),
        width=cfg.width,
        feature_size=cfg.feature_size,
        shot=cfg.trained_shot or cfg.shot,
        kshot_trans_dim=cfg.kshot_trans_dim,
        kshot_unsort=cfg.kshot_unsort,
    )
    if pretrained and base_learner:
        path = cfg.base_learner_path
        hint = "train it with train_base.sh, or put the released base-learner checkpoint there"
        load_base_learner(model, _expect(path, "base learner", hint))
    elif pretrained:
        load_pretrained(backbone, cfg)
    return model


def build_base_learner(cfg: Config, pretrained: bool = True) -> PSPNet:
    """The network of stage 1; with `pretrained`, its backbone starts from ImageNet weights in `initmodel/`.

    The `tiny` backbone has no ImageNet weights and starts from random ones.
    """
    backbone = encoder(cfg, freeze=cfg.base_freeze_backbone)
    _check_sizes(cfg, backbone, "base_train_h", "val_size")
    if pretrained and cfg.backbone_name != "tiny":
        load_pretrained(backbone, cfg)
    return PSPNet(backbone, cfg.base_class_count)


def encoder(cfg: Config, freeze: bool | None = None) -> Backbone:
    """The backbone that the configuration names, with random weights; `freeze` is for one of timm's."""
    family, _, name = cfg.backbone_name.partition("/")
    if family != "timm":
        return build_backbone(family, cfg.stem, cfg.dilate_first)
    from model.backbone.timm import TimmBackbone  # takes seconds to import

    return TimmBackbone(name, cfg.backbone_layers, imagenet_file(cfg), freeze)


def load_pretrained(backbone: Backbone, cfg: Config) -> None:
    """ImageNet weights from `initmodel/`, or timm's own; UserError where they are missing or do not fit."""
    if cfg.backbone_name == "tiny":
        raise UserError("backbone: 'tiny' has no ImageNet weights: set 'ensemble: true' and train a base learner first")
    if isinstance(backbone, StagedBackbone):
        hint = f"download ImageNet weights of {cfg.backbone_name} and put them there (see initmodel/README.md)"
        load_backbone(backbone, _expect(imagenet_file(cfg), "ImageNet backbone", hint))
    else:
        backbone.fetch()


def imagenet_file(cfg: Config) -> Path:
    """Where the backbone's pretrained weights are looked for; those of timm's models may end in .pth too."""
    name = cfg.backbone_name
    if name.startswith("timm/"):
        files = [Path(cfg.initmodel, f"{name}{suffix}") for suffix in (".safetensors", ".pth")]
        return next((file for file in files if file.is_file()), files[0])
    return Path(cfg.initmodel, "vgg16_bn.pth" if name == "vgg" else IMAGENET_FILES[name, cfg.stem])


def _check_sizes(cfg: Config, backbone: Backbone, *keys: str) -> None:
    """UserError for a size of images that the backbone cannot see."""
    rule = f"a multiple of {backbone.step}" + (f" plus {backbone.offset}" if backbone.offset else "")
    for key in keys:
        if (below := backbone.nearest(size := getattr(cfg, key))) != size:
            above = backbone.nearest(below + backbone.step)
            choice = str(below) if below == above else f"{rule}, such as {below} or {above},"
            raise UserError(f"{key}: {size} should be {choice} for backbone {cfg.backbone_name}")


def build_trunk(cfg: Config) -> Trunk:
    """The trunk of the blocks that `fusion` names."""
    kinds = hmnet_blocks(cfg) if cfg.fusion_name == "hmnet" else FUSIONS[cfg.fusion_name]
    blocks = [from_config(kind, cfg) for kind, _ in zip(cycle(kinds), range(cfg.blocks), strict=False)]
    return Trunk(blocks, cfg.width, cfg.checkpoint_blocks)


def hmnet_blocks(cfg: Config) -> tuple[Callable[..., Block], ...]:
    """The kinds of HMNet's blocks, in turn."""
    own = (SelfBlock,) if cfg.self_blocks else ()
    hybrid = () if cfg.srm == cfg.qim == "none" else (HybridBlock,)
    return (*own, *hybrid)


def from_config(kind: Callable[..., T], cfg: Config) -> T:
    """Call `kind`, whose parameters have the names of config keys, with the values of those keys."""
    return kind(**{name: getattr(cfg, name) for name in signature(kind).parameters})


def _expect(path: Path, what: str, hint: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: {what} weights are missing: {hint}")
    return path

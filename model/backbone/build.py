"""The backbone of a configuration, and where its pretrained weights are."""

from pathlib import Path

from model.backbone import Backbone, create_backbone
from model.released import load_backbone
from util.config import Config
from util.errors import UserError

IMAGENET_FILES = {
    ("resnet50", "deep"): "resnet50_v2.pth",
    ("resnet101", "deep"): "resnet101_v2.pth",
    ("resnet50", "torchvision"): "resnet50.pth",
    ("resnet101", "torchvision"): "resnet101.pth",
}
VGG_FILES = {"vgg": "vgg16_bn.pth", "vgg16": "vgg16.pth"}


def build_backbone(cfg: Config, freeze: bool | None = None) -> Backbone:
    """The backbone that the configuration names, with random weights; `freeze` is for one of timm's."""
    family, _, name = cfg.backbone_name.partition("/")
    if family != "timm":
        return create_backbone(family, cfg.stem, cfg.dilate_first, cfg.output_stride)
    from model.backbone.timm import TimmBackbone  # takes seconds to import

    return TimmBackbone(name, cfg.backbone_layers, imagenet_file(cfg), freeze, cfg.output_stride)


def load_pretrained(backbone: Backbone, cfg: Config) -> None:
    """ImageNet weights from `initmodel/`, or timm's own; UserError where they are missing or do not fit."""
    if cfg.backbone_name == "tiny":
        raise UserError("backbone: 'tiny' has no ImageNet weights: set 'ensemble: true' and train a base learner first")
    if not cfg.backbone_name.startswith("timm/"):
        hint = f"download ImageNet weights of {cfg.backbone_name} and put them there (see initmodel/README.md)"
        load_backbone(backbone, expect_weights(imagenet_file(cfg), "ImageNet backbone", hint))
    else:
        backbone.load_pretrained()


def imagenet_file(cfg: Config) -> Path:
    """Where the backbone's pretrained weights are looked for; those of timm's models may end in .pth too."""
    name = cfg.backbone_name
    if cfg.imagenet_weights:
        return Path(cfg.initmodel, cfg.imagenet_weights)
    if name.startswith("timm/"):
        files = [Path(cfg.initmodel, f"{name}{suffix}") for suffix in (".safetensors", ".pth")]
        return next((file for file in files if file.is_file()), files[0])
    return Path(cfg.initmodel, VGG_FILES.get(name) or IMAGENET_FILES[name, cfg.stem])


def check_sizes(cfg: Config, backbone: Backbone, *keys: str) -> None:
    """UserError for a size of images that the backbone cannot see."""
    rule = f"a multiple of {backbone.size_multiple}" + (f" plus {backbone.size_offset}" if backbone.size_offset else "")
    for key in keys:
        if (below := backbone.valid_size(size := getattr(cfg, key))) != size:
            above = backbone.valid_size(below + backbone.size_multiple)
            choice = str(below) if below == above else f"{rule}, such as {below} or {above},"
            raise UserError(f"{key}: {size} should be {choice} for backbone {cfg.backbone_name}")


def expect_weights(path: Path, what: str, hint: str) -> Path:
    """The path; UserError with the hint where no file is there."""
    if not path.is_file():
        raise UserError(f"{path}: {what} weights are missing: {hint}")
    return path

"""Networks built from a configuration."""

from pathlib import Path

from model.backbone import build_backbone
from model.base_learner import BaseLearner, PSPNet
from model.fusion import fusion_trunk
from model.hmnet import HMNet
from model.mamba import Trunk
from model.released import load_backbone, load_base_learner
from util.config import Config
from util.errors import UserError

IMAGENET_FILES = {
    ("resnet50", "deep"): "resnet50_v2.pth",
    ("resnet101", "deep"): "resnet101_v2.pth",
    ("resnet50", "torchvision"): "resnet50.pth",
    ("resnet101", "torchvision"): "resnet101.pth",
}


def build_model(cfg: Config, pretrained: bool = True) -> HMNet:
    """HMNet as the configuration describes it.

    With `pretrained`, the frozen parts come from `initmodel/`: the base learner's checkpoint, or ImageNet weights where
    `ensemble` is off; UserError says which file is expected where if it is missing.
    """
    backbone = build_backbone(cfg.backbone_name, cfg.stem)
    base_learner = BaseLearner(backbone.channels[4], cfg.base_class_count) if cfg.ensemble else None
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
        load_backbone(model.backbone, _imagenet_file(cfg))
    return model


def build_base_learner(cfg: Config, pretrained: bool = True) -> PSPNet:
    """The network of stage 1; with `pretrained`, its backbone starts from ImageNet weights in `initmodel/`.

    The `tiny` backbone has no ImageNet weights and starts from random ones.
    """
    network = PSPNet(build_backbone(cfg.backbone_name, cfg.stem), cfg.base_class_count)
    if pretrained and cfg.backbone_name != "tiny":
        load_backbone(network.backbone, _imagenet_file(cfg))
    return network


def build_trunk(cfg: Config) -> Trunk:
    """The trunk that `fusion` names; HMNet's with every component off is the concatenation alone (paper, Table 3)."""
    nothing = not cfg.self_blocks and cfg.srm == cfg.qim == "none"
    fusion = "concat" if cfg.fusion == "hmnet" and nothing else cfg.fusion
    if fusion != "hmnet":
        return fusion_trunk(fusion, cfg.width, cfg.blocks, cfg.patch_ratio, cfg.checkpoint_blocks)
    return Trunk(
        cfg.width,
        cfg.blocks,
        cfg.state_size,
        cfg.scan,
        self_blocks=cfg.self_blocks,
        checkpoint_blocks=cfg.checkpoint_blocks,
        patches=cfg.patch_ratio,
        srm=cfg.srm,
        qim=cfg.qim,
        qim_skip=cfg.qim_skip,
        qim_state_grad=cfg.qim_state_grad,
    )


def _imagenet_file(cfg: Config) -> Path:
    if cfg.backbone_name == "tiny":
        raise UserError("backbone: 'tiny' has no ImageNet weights: set 'ensemble: true' and train a base learner first")
    name = "vgg16_bn.pth" if cfg.backbone_name == "vgg" else IMAGENET_FILES[cfg.backbone_name, cfg.stem]
    hint = f"download ImageNet weights of {cfg.backbone_name} and put them there (see initmodel/README.md)"
    return _expect(Path(cfg.initmodel) / name, "ImageNet backbone", hint)


def _expect(path: Path, what: str, hint: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: {what} weights are missing: {hint}")
    return path

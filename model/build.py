"""Networks built from a configuration."""

from model.backbone.build import build_backbone, check_sizes, expect_weights, load_pretrained
from model.cpu import FastBaseLearner
from model.methods import find_method
from model.methods.method import Method
from model.parts.base_learner import PSPNet
from model.released import load_base_learner
from util.config import Config


def build_model(cfg: Config, pretrained: bool = True) -> Method:
    """The method that `arch` names, as the configuration describes it.

    With `pretrained`, the frozen parts come from `initmodel/`: the base learner's checkpoint, or ImageNet weights where
    the method has no base learner; UserError says which file is expected where if it is missing. UserError too for a
    name that is no method's and for a size of images that the backbone cannot see.
    """
    kind = find_method(cfg.arch)
    cfg = kind.configured(cfg)
    learnt = kind.has_base_learner(cfg)
    backbone = build_backbone(cfg, freeze=cfg.base_freeze_backbone if learnt else True)
    base_learner = None
    if learnt:
        base_learner = FastBaseLearner(backbone.channels(backbone.levels)[-1], cfg.base_class_count)
    model = kind.build(cfg, backbone, base_learner)
    model.correct(cfg.corrections)
    check_sizes(cfg, backbone, *(["train_h"] if model.is_trained else []), "val_size")
    if pretrained:
        load_frozen_parts(model, cfg)
    return model


def load_frozen_parts(model: Method, cfg: Config) -> None:
    """Load what a method does not learn from `initmodel/`; errors as in `build_model`."""
    if model.base_learner is None:
        load_pretrained(model.backbone, type(model).configured(cfg))
        return
    hint = "train it with train_base.sh, or put the released base-learner checkpoint there"
    load_base_learner(model, expect_weights(cfg.base_learner_path, "base learner", hint))


def build_base_learner(cfg: Config, pretrained: bool = True) -> PSPNet:
    """The network of stage 1; with `pretrained`, its backbone starts from ImageNet weights in `initmodel/`.

    The `tiny` backbone has no ImageNet weights and starts from random ones.
    """
    backbone = build_backbone(cfg, freeze=cfg.base_freeze_backbone)
    check_sizes(cfg, backbone, "base_train_h", "val_size")
    if pretrained and cfg.backbone_name != "tiny":
        load_pretrained(backbone, cfg)
    return PSPNet(backbone, FastBaseLearner(backbone.channels(backbone.levels)[-1], cfg.base_class_count))

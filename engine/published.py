"""Published figures that a training can be checked against while it runs."""

from util.config import Config

# mIoU of the base classes of folds 0 to 3 in per cent, as BAM's author published them (Lang et al., CVPR 2022).
BASE_MIOU = {
    ("pascal", "resnet50"): (71.43, 69.17, 69.19, 73.72),
    ("pascal", "vgg"): (67.76, 65.82, 65.51, 69.95),
    ("coco", "resnet50"): (50.84, 49.41, 51.95, 50.89),
    ("coco", "vgg"): (44.99, 43.04, 45.92, 45.05),
}


def base_miou(cfg: Config) -> float | None:
    """The published mIoU of a config's base learner in per cent; None where there is none."""
    figures = BASE_MIOU.get((cfg.data_set, cfg.backbone_name))
    usual = cfg.folds == 4 and (cfg.use_split_coco or cfg.data_set != "coco")
    return figures[cfg.split] if figures and usual and cfg.split < cfg.folds else None  # split 4: all classes are base

"""What the values of one config key demand of another's."""

from collections.abc import Iterator

from util.folds import WITH_ALL
from util.schema import CLASS_COUNTS, Config


def broken_relations(cfg: Config) -> Iterator[tuple[str, str]]:
    """The keys whose values do not fit those of other keys, each with what it should be."""
    if cfg.split >= cfg.folds + (cfg.data_set in WITH_ALL):
        yield "split", f"should be below folds ({cfg.folds})"
    if cfg.num_classes != CLASS_COUNTS.get(cfg.data_set, cfg.num_classes):
        yield "num_classes", f"should be {CLASS_COUNTS[cfg.data_set]} for data_set {cfg.data_set}"
    if not 2 <= cfg.folds <= cfg.num_classes:
        yield "folds", f"should be from 2 to num_classes ({cfg.num_classes})"
    dilated = not cfg.backbone_name.startswith(("timm/", "vgg16")) and cfg.output_stride == 8
    for key in ("train_h", "val_size", "base_train_h") if dilated else ():
        if (size := getattr(cfg, key)) % 8 != 1 or size < 9:
            below = max(size - (size - 1) % 8, 9)
            yield key, f"should be a multiple of 8 plus 1, such as {below} or {below + 8}"
    if cfg.train_w != cfg.train_h:
        yield "train_w", f"should equal train_h ({cfg.train_h})"
    for low, high in (("scale_min", "scale_max"), ("rotate_min", "rotate_max"), ("base_scale_min", "base_scale_max")):
        if getattr(cfg, low) > getattr(cfg, high):
            yield low, f"should be at most {high} ({getattr(cfg, high)})"
    if cfg.layers not in (50, 101):
        yield "layers", "should be 50 or 101"
    if cfg.trained_shot not in (None, 1, cfg.shot):
        yield "trained_shot", f"should be empty, 1 or shot ({cfg.shot})"
    if cfg.fusion in ("cross_attention", "self_calibrated") and cfg.width % 8:
        yield "width", f"should be a multiple of 8, the heads of fusion {cfg.fusion}"
    if cfg.min_class_images and cfg.protocol == "hsnet":
        yield "min_class_images", "should be empty with protocol hsnet, whose lists name every episode"
    if cfg.test_classes == "base" and cfg.ensemble:
        yield "test_classes", "should be novel with ensemble True, whose base learner calls base classes background"
    if cfg.feature_size % cfg.patch_ratio:
        yield "feature_size", f"should be a multiple of patch_ratio ({cfg.patch_ratio})"

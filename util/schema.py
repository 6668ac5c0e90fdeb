"""The config keys and their types; what each one means and its default stand in config/base/*.yaml."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from util.folds import fold_classes


class YamlLoader(yaml.SafeLoader):
    """YAML as people write it: `1e-4` is a number, as it is in Python, not a string."""


class YamlDumper(yaml.SafeDumper):
    """The inverse of YamlLoader: strings that it would read as numbers are quoted."""


for _dialect in (YamlLoader, YamlDumper):
    _dialect.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


# What a key is about; code that compares runs or predictions asks `keys_of` and lists none by hand.
Value = TypeVar("Value")
Network = Annotated[Value, "network"]  # the network: with the same weights, another value predicts otherwise
Recipe = Annotated[Value, "recipe"]  # how it is trained
Protocol = Annotated[Value, "protocol"]  # what it is tested on

Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Int, Field(gt=0)]
NotNegative = Annotated[Int, Field(ge=0)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NotNegativeFloat = Annotated[Float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]  # True is all, False none

# Keys of BAM's files for things that this network fixes (two output classes, label 255, frozen batch norm, zoom 8,
# no auxiliary losses) or does not have.
UNUSED_KEYS = {
    "classes",
    "ignore_label",
    "padding_label",
    "warmup",
    "resized_val",
    "ori_resize",
    "fix_bn",
    "zoom_factor",
}
UNUSED_KEYS |= {"aux_weight1", "aux_weight2", "low_fea", "merge", "merge_tau"}
BAM_KEYS = {"seed_deterministic": "deterministic"}  # BAM's name of a key -> ours
RENAMED_KEYS = {"views": "cached_crops", "view_folder": "crop_folder"}  # name in former versions -> name
BACKBONES = ("resnet50", "resnet101", "vgg", "vgg16", "tiny")
CLASS_COUNTS = {"pascal": 20, "coco": 80}


class Config(BaseModel):
    """One experiment: every key is an attribute; made by `util.config.load_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # data
    data_set: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    data_root: str
    train_list: str
    val_list: str
    num_classes: Positive
    folds: Positive
    split: NotNegative
    use_split_coco: bool
    class_file: str | None
    area_threshold: Protocol[NotNegative]
    min_class_images: Protocol[Positive | None]
    released_lists: Protocol[str | None]

    # images
    train_h: Recipe[Positive]
    train_w: Positive
    val_size: Network[Positive]
    max_side: Recipe[Positive | None]
    scale_min: Recipe[PositiveFloat]
    scale_max: Recipe[PositiveFloat]
    rotate_min: Recipe[Float]
    rotate_max: Recipe[Float]

    # network
    arch: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    layers: Int
    vgg: bool
    backbone: str | None
    backbone_layers: Network[Annotated[list[NotNegative], Field(min_length=1)] | None]
    stem: Network[Literal["deep", "torchvision"]]
    dilate_first: Network[bool]
    output_stride: Network[Literal[8, 32]]
    feature_size: Network[Positive]
    width: Network[Positive]
    blocks: Network[Positive]
    state_size: Network[Positive]
    patch_ratio: Network[Positive]
    self_blocks: Network[bool]
    srm: Network[Literal["none", "basic", "recap"]]
    qim: Network[Literal["none", "basic", "share"]]
    fusion: Network[Literal["hmnet", "concat", "mlp", "cross_attention", "self_calibrated"]]
    ensemble: Network[bool]
    qim_skip: Network[Literal["scalar", "channel"]]
    qim_state_grad: Recipe[bool]
    kshot_unsort: Network[bool]
    kshot_trans_dim: Network[NotNegative]
    trained_shot: Network[Positive | None]
    ppm_scales: Network[Annotated[list[PositiveFloat], Field(min_length=1)]]
    aux_weight: Recipe[NotNegativeFloat]
    batch_statistics: Recipe[bool]
    scan: Literal["auto", "reference", "cpu", "triton", "mamba_ssm"]
    initmodel: str
    imagenet_weights: str | None
    exp: str

    # training
    shot: Positive
    batch_size: Positive
    accumulate: Positive
    epochs: Recipe[Positive]
    hard_queries: Recipe[Share]
    absent_queries: Recipe[Share]
    paste_queries: Recipe[Share]
    cached_crops: Recipe[Positive | None]
    crop_folder: str
    crop_limit_gb: PositiveFloat
    start_epoch: NotNegative
    stop_interval: Positive
    base_lr: Recipe[PositiveFloat]
    index_split: Annotated[Int, Field(ge=-1)]
    power: NotNegativeFloat
    momentum: NotNegativeFloat
    weight_decay: NotNegativeFloat
    trunk_lr: Recipe[PositiveFloat]
    trunk_weight_decay: NotNegativeFloat
    amp: Network[Literal["off", "fp16", "bf16", "auto"]]
    max_skipped_steps: Positive
    checkpoint_blocks: bool
    compile: bool
    print_freq: Positive
    save_freq: Positive
    save_minutes: PositiveFloat
    keep: Positive
    resume: str | None
    manual_seed: NotNegative
    deterministic: bool
    device: str
    workers: Positive
    loader_workers: NotNegative | None

    # validation while training
    evaluate: bool
    SubEpoch_val: bool
    fix_random_seed_val: bool
    batch_size_val: Positive
    val_start_epoch: NotNegative
    val_episodes: Positive | None

    # base learner
    base_train_h: Positive
    base_batch_size: Positive
    base_epochs: Positive
    base_lr_encoder: PositiveFloat
    base_freeze_backbone: Network[bool | None]
    base_index_split: Annotated[Int, Field(ge=-1)]
    base_scale_min: PositiveFloat
    base_scale_max: PositiveFloat
    base_stop_interval: Positive

    # testing
    weight: str | None
    allow_other_split: bool
    ann_type: Literal["mask", "bbox"]
    test_classes: Protocol[Literal["novel", "base"]]
    test_set: Protocol[str | None]
    test_root: str | None
    test_fold: Protocol[NotNegative | None]
    protocol: Protocol[Literal["released", "seeded", "hsnet", "fptrans"]]
    lists: str | None
    variant: Protocol[str | None]
    metric_size: Protocol[Literal["original", "input"]]
    test_episodes: Protocol[Positive | None]
    seeds: Annotated[list[NotNegative], Field(min_length=1), BeforeValidator(_as_list)]
    episodes_file: Protocol[str | None]
    feature_cache_mb: NotNegative

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str | None) -> str | None:
        if value is not None and value not in BACKBONES and not re.fullmatch(r"timm/\w[\w.-]*", value):
            raise ValueError(f"should be {', '.join(BACKBONES)} or timm/NAME, NAME being a model of timm")
        return value

    @field_validator("feature_size", mode="before")
    @classmethod
    def _default_feature_size(cls, value: Any, info: ValidationInfo) -> Any:
        return (64 if info.data.get("train_h", 0) <= 473 else 80) if value is None else value

    @field_validator("metric_size", mode="before")
    @classmethod
    def _default_metric_size(cls, value: Any, info: ValidationInfo) -> Any:
        return ("input" if info.data.get("protocol") == "hsnet" else "original") if value is None else value

    @field_validator("test_episodes", mode="before")
    @classmethod
    def _default_test_episodes(cls, value: Any, info: ValidationInfo) -> Any:
        own = info.data.get("test_set") is None and info.data.get("protocol") in ("released", "seeded")
        return (4000 if info.data.get("data_set") == "coco" else 1000) if value is None and own else value

    @field_validator("amp", mode="before")
    @classmethod
    def _default_amp(cls, value: Any, info: ValidationInfo) -> Any:
        if value is False:  # YAML reads a bare `off` as false
            return "off"
        return ("auto" if info.data.get("arch") == "HMNetAMP" else "off") if value is None else value

    @property
    def backbone_name(self) -> str:
        """'resnet50', 'resnet101', 'vgg', 'tiny' or 'timm/NAME': `backbone`, or what BAM's `vgg` and `layers` say."""
        return self.backbone or ("vgg" if self.vgg else f"resnet{self.layers}")

    @property
    def list_kind(self) -> str:
        """Which training images stay: "filtered", without any novel class, or "all" that have a base class."""
        return "all" if self.train_list == "all" else "filtered"

    @property
    def train_list_file(self) -> str:
        """The list file of training: `train_list`, unless that only says which images stay."""
        return "ImageSets/train.txt" if self.train_list in ("filtered", "all") else self.train_list

    @property
    def fusion_name(self) -> str:
        """`fusion`, where HMNet with every component off is the concatenation alone (paper, Table 3)."""
        off = not self.self_blocks and self.srm == self.qim == "none"
        return "concat" if self.fusion == "hmnet" and off else self.fusion

    @property
    def fold_classes(self) -> tuple[list[int], list[int]]:
        """Base and novel classes of this fold, ascending."""
        return fold_classes(self.data_set, self.split, self.num_classes, self.folds, self.use_split_coco)

    @property
    def novel_class_count(self) -> int:
        """Classes of this fold."""
        return len(self.fold_classes[1])

    @property
    def base_class_count(self) -> int:
        """Classes outside this fold."""
        return len(self.fold_classes[0])

    @property
    def loader_worker_count(self) -> int:
        """Worker processes of a data loader: `loader_workers`, or `workers` as far as there are processors."""
        return min(self.workers, os.cpu_count() or 1) if self.loader_workers is None else self.loader_workers

    @property
    def experiment_dir(self) -> Path:
        """Where a run writes: exp/{data_set}/{arch}/split{i}/{backbone}."""
        return Path(self.exp, self.data_set, self.arch, f"split{self.split}", self.backbone_name)

    def best_weights(self, shot: int) -> Path:
        """Where meta-training with so many shots leaves its best weights."""
        return self.experiment_dir / "snapshot" / f"best_{shot}shot.pth"

    @property
    def base_learner_path(self) -> Path:
        """Where stage 1 leaves its weights and stage 2 finds them."""
        return Path(self.initmodel, "PSPNet", self.data_set, f"split{self.split}", self.backbone_name, "best.pth")

    def to_yaml(self) -> str:
        """A flat file that `load_config` reads back as an equal Config."""
        return yaml.dump(self.model_dump(), Dumper=YamlDumper, sort_keys=False)


def keys_of(*topics: str) -> tuple[str, ...]:
    """The keys that are about "network", "recipe" or "protocol", in the schema's order."""
    return tuple(key for key, field in Config.model_fields.items() if set(topics) & set(map(str, field.metadata)))


def run_name(shot: int) -> str:
    """What a training with so many shots is called in the names of files: train_epoch_..., train5_epoch_..."""
    return "train" if shot == 1 else f"train{shot}"


def run_tag(shot: int) -> str:
    """What the names of its other files end in, as runs of all shots share a folder: nothing, or _train5."""
    return "" if shot == 1 else f"_{run_name(shot)}"


# Keys whose empty value means something: None, or a value worked out from other keys.
NULLABLE_KEYS = frozenset(
    name for name, field in Config.model_fields.items() if type(None) in get_args(field.annotation)
) | {"feature_size", "amp", "metric_size"}


def broken_relations(cfg: Config) -> Iterator[tuple[str, str]]:
    """The keys whose values do not fit those of other keys, each with what it should be."""
    if cfg.split >= cfg.folds + (cfg.data_set == "pascal"):
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

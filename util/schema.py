"""The config keys: the type and the meaning of each; their defaults stand in config/base/*.yaml."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from util.dialect import YamlDumper
from util.folds import fold_classes
from util.keys import (
    Float,
    Int,
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveFloat,
    Seed,
    Share,
    about,
    as_list,
    derived,
)
from util.processors import processor_count

# Keys of BAM's files for things that this project fixes (two output classes, label 255, frozen batch norm, zoom 8,
# no auxiliary losses) or does not have.
UNUSED_KEYS = {
    *("classes", "ignore_label", "padding_label", "warmup", "resized_val", "ori_resize", "fix_bn", "zoom_factor"),
    *("aux_weight1", "aux_weight2", "low_fea", "merge", "merge_tau", "base_data_root"),
    "batch_statistics",  # a former version's; `corrections` may name frozen_statistics instead
}
BAM_KEYS = {"seed_deterministic": "deterministic"}  # BAM's name of a key -> ours
RENAMED_KEYS = {"views": "cached_crops", "view_folder": "crop_folder"}  # name in former versions -> name
BACKBONES = ("resnet50", "resnet101", "vgg", "vgg16", "tiny")
CLASS_COUNTS = {"pascal": 20, "coco": 80}


class Config(BaseModel):
    """One experiment: every key is an attribute; made by `util.config.load_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # data
    data_set: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = about(
        "recipe", "pascal, coco, or any other name for a data set of your own", "base"
    )
    data_root: str = about("place", "folder of the data set; all paths are relative to the working directory")
    mixed_root: str = about("place", "data_set mixed: the folder of MSRC v2; data_root is VOC's")
    train_list: str = about(
        "recipe",
        "lines `image mask`, looked for in the working directory, then in data_root; filtered: "
        "ImageSets/train.txt; all: the same with the images of novel classes, as background",
        "base",
    )
    val_list: str = about("protocol", "the list of validation and test images, looked for as train_list")
    num_classes: Positive = about("recipe", "classes of the data set", "base")
    folds: Positive = about("recipe", "into which the classes are divided", "base")
    split: NotNegative = about(
        "recipe", "the fold whose classes are novel; 4 of PASCAL: none, for tests on other sets", "base"
    )
    use_split_coco: bool = about("recipe", "COCO folds: True every 4th class (FWB), False 20 in a row (PANet)", "base")
    class_file: str | None = about("place", "`index name` lines of your own data set; empty: classes.txt in data_root")
    area_threshold: NotNegative = about("protocol", "pixels of a class below which it does not count in an image")
    min_class_images: Positive | None = about(
        "protocol", "leave out classes with fewer images; empty: such a class is an error"
    )
    released_lists: str | None = about(
        "protocol", "folder of released list files: train/ and val/, in each data_list_{split}.txt ..."
    )

    # images
    train_h: Positive = about("recipe", "crop of meta-training, 8m+1")
    train_w: Positive = about("recipe", "the same as train_h")
    val_size: Positive = about("network", "to which validation and test images are resized, 8m+1")
    max_side: Positive | None = about(
        "recipe", "pixels to which the longer side of larger images is reduced first; empty: none", "base"
    )
    scale_min: PositiveFloat = about("recipe", "of the random scale")
    scale_max: PositiveFloat = about("recipe", "of the random scale")
    rotate_min: Float = about("recipe", "degrees", "base")
    rotate_max: Float = about("recipe", "degrees", "base")

    # network
    arch: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = about(
        "network", "the method's name; HMNetAMP is HMNet with mixed precision"
    )
    layers: Int = about("network", "ResNet of 50 or 101 layers", "base")
    vgg: bool = about("network", "True: VGG-16 instead of a ResNet", "base")
    backbone: str | None = about(
        "network", "resnet50, resnet101, vgg, tiny (for tests), timm/NAME; empty: as layers, vgg say", "base"
    )
    backbone_layers: Annotated[list[NotNegative], Field(min_length=1)] | None = about(
        "network", "which maps of timm's feature_info a method takes; empty: last stages, ViT: 1/2, 3/4, end", "base"
    )
    stem: Literal["deep", "torchvision"] = about("network", "ResNet's: deep (three 3x3) or torchvision (7x7)", "base")
    dilate_first: bool = about(
        "network", "False: first blocks of stages 3, 4 dilated by 1, 2 instead of 2, 4 (SCCAN)", "base"
    )
    output_stride: Literal[8, 32] = about(
        "network", "8: stages of stride 16 and 32 are dilated instead, where they can be; 32: they are not", "base"
    )
    feature_size: Positive = derived("network", "side of the trunk's grid; empty: 64 up to train_h 473, 80 above")
    width: Positive = about("network", "channels of the trunk")
    blocks: Positive = about("network", "of the trunk, self and hybrid in turn")
    state_size: Positive = about("network", "of the scan, per channel")
    patch_ratio: Positive = about("network", "the grid is cut into so many patches each way")
    self_blocks: bool = about("network", "False: without the self blocks")
    srm: Literal["none", "basic", "recap"] = about(
        "network", "support recapped Mamba: none, basic (support once, in front) or recap"
    )
    qim: Literal["none", "basic", "share"] = about(
        "network", "query intercepted Mamba: none, basic (parameters of its own) or share (those of SRM)"
    )
    fusion: Literal["hmnet", "concat", "mlp", "cross_attention", "self_calibrated"] = about(
        "network", "hmnet, or to compare: concat (no blocks), mlp, cross_attention, self_calibrated"
    )
    ensemble: bool = about("network", 'with the base learner; False: the paper\'s "without BAM"')
    ppm_scales: Annotated[list[PositiveFloat], Field(min_length=1)] = about(
        "network", "PFENet: sides of its maps; up to 1, shares of the feature's side"
    )
    aux_weight: NotNegativeFloat = about("recipe", "PFENet: of the losses at those scales")
    corrections: Annotated[list[str], BeforeValidator(as_list)] = about(
        "network", "quirks of a method's published code that are switched off, by name (docs/methods.md)"
    )
    insid3_components: Annotated[Float, Field(ge=0, lt=1)] = about(
        "network", "INSID3: share of the channels, 500 at most, that is taken for mere position and removed"
    )
    insid3_tau: Share = about("network", "INSID3: mean cosine down to which clusters are merged")
    insid3_threshold: Float = about("network", "INSID3: product of likenesses above which a cluster joins")
    fssdino_clusters: Positive = about("network", "FSSDINO: prototypes of a class")
    density_concentration: PositiveFloat = about("network", "density: of its kernels; larger ones are narrower")
    qim_skip: Literal["scalar", "channel"] = about(
        "network", "released checkpoints: scalar; the paper's equation: channel"
    )
    qim_state_grad: bool = about("recipe", "True: gradients flow into the state that QIM starts from")
    kshot_unsort: bool = about("network", "True: each weight over shots goes back to its own shot, as BAM's always do")
    kshot_trans_dim: NotNegative = about("network", "hidden width of the weights over shots; 0: one linear map")
    trained_shot: Positive | None = about(
        "network", "shots that the weights are trained for; empty: shot. 1: they serve any number"
    )
    scan: Literal["auto", "reference", "cpu", "triton", "mamba_ssm"] = about("machine", "what computes the scan")
    initmodel: str = about("place", "folder of ImageNet and base learner weights")
    imagenet_weights: str | None = about(
        "place", "file there with the backbone's ImageNet weights; empty: the usual one of backbone and stem"
    )
    exp: str = about("place", "folder of runs")

    # training
    shot: Positive = about("recipe", "support images per episode")
    batch_size: Positive = about("recipe", "episodes per process; the paper's 8 (COCO 16) are 4 (8) processes of 2")
    accumulate: Positive = about("recipe", "batches summed before a step", "base")
    epochs: Positive = about("recipe", "of meta-training")
    hard_queries: Share = about(
        "recipe", "share of episodes, 0 to 1, whose query shows another base class too, if possible"
    )
    balanced_queries: bool = about(
        "recipe", "True: queries are drawn by class, all equally often; False: every training image once an epoch"
    )
    absent_queries: Share = about("recipe", "share whose query does not show the support's class: all background")
    paste_queries: Share = about("recipe", "share into whose query an object of another base class is pasted")
    cached_crops: Positive | None = about(
        "recipe", "so many fixed crops of every image, whose backbone's maps are stored; empty: new ones"
    )
    crop_folder: str = about("place", "where stored maps lie")
    crop_limit_gb: PositiveFloat = about("machine", "gigabytes that they may take, over all trainings")
    start_epoch: NotNegative = about("recipe", "epochs that count as done", "base")
    stop_interval: Positive = about("recipe", "epochs without a better validation mIoU after which training stops")
    base_lr: PositiveFloat = about("recipe", "SGD, everything learnable outside the trunk")
    index_split: Annotated[Int, Field(ge=-1)] = about(
        "recipe", "parameter groups with an index above this learn 10 times as fast"
    )
    power: NotNegativeFloat = about("recipe", "of the polynomial decay", "base")
    momentum: NotNegativeFloat = about("recipe", "of SGD", "base")
    weight_decay: NotNegativeFloat = about("recipe", "of SGD", "base")
    trunk_lr: PositiveFloat = about("recipe", "AdamW, the trunk; times half the batch_size of a process")
    trunk_weight_decay: NotNegativeFloat = about("recipe", "AdamW, the trunk")
    amp: Literal["off", "fp16", "bf16", "auto"] = derived(
        "network",
        "off, fp16, bf16, auto (fp16 on a GPU, off on a CPU); empty: auto if arch is HMNetAMP, else off",
        "base",
    )
    max_skipped_steps: Positive = about(
        "machine", "fp16 skips a step that overflows; training stops after so many in a row"
    )
    checkpoint_blocks: bool = about("machine", "recompute the trunk's blocks in the backward pass: less memory")
    compile: bool = about("machine", "torch.compile")
    print_freq: Positive = about("record", "steps between two lines of the log")
    save_freq: Positive = about("record", "epochs between two checkpoints")
    save_minutes: PositiveFloat = about("record", "minutes after which a checkpoint is written in mid-epoch")
    keep: Positive = about("record", "checkpoints to keep for resuming")
    resume: str | None = about("record", "a checkpoint to go on from, or `auto` for the newest intact one of this run")
    manual_seed: Seed = about("seed", "of training, and of the episodes of its validation", "base")
    deterministic: bool = about("machine", "bit-identical runs (BAM's seed_deterministic)")
    device: str = about("machine", "auto, cpu, cuda, cuda:1, mps ...")
    workers: Positive = about("machine", "loader workers, as far as there are processors")
    loader_workers: NotNegative | None = about("machine", "exactly so many loader workers; empty: as workers says")

    # validation while training
    evaluate: bool = about("recipe", "validate while training")
    SubEpoch_val: bool = about("recipe", "validate in mid-epoch too")
    fix_random_seed_val: bool = about("recipe", "the same episodes every time")
    batch_size_val: Positive = about("machine", "images or episodes at a time in validation and test")
    val_start_epoch: NotNegative = about("recipe", "the first epoch (from 1) that validation follows")
    val_episodes: Positive | None = about(
        "recipe", "empty: 1000, COCO 4000, but no more than 10 times the validation images"
    )

    # base learner
    base_train_h: Positive = about("base", "crop, 8m+1")
    base_batch_size: Positive = about("base", "images per step over all processes")
    base_epochs: Positive = about("base", "of stage 1")
    base_lr_encoder: PositiveFloat = about("base", "SGD")
    base_freeze_backbone: bool | None = about(
        "network", "keep a backbone of timm as it is; empty: True for plain vision transformers", "base"
    )
    base_index_split: Annotated[Int, Field(ge=-1)] = about(
        "base", "0: pyramid pooling and classifier learn 10 times as fast; -1: the encoder too"
    )
    base_scale_min: PositiveFloat = about("base", "of the random scale")
    base_scale_max: PositiveFloat = about("base", "of the random scale")
    base_val_start_epoch: Positive = about("base", "the first epoch (from 1) that validation follows")
    base_stop_interval: Positive = about("base", "epochs without a better validation mIoU after which it stops")

    # testing
    weight: str | None = about("place", "checkpoint to test, looked for in the run's snapshot folder; empty: its best")
    allow_other_split: bool = about(
        "record", "True: test weights trained on another data set, split or number of shots; the result says so"
    )
    ann_type: Literal["mask", "bbox"] = about("protocol", "supports annotated by mask or bbox")
    test_classes: Literal["novel", "base"] = about(
        "protocol", "base: validate and test on the base classes of validation images, to choose a recipe"
    )
    test_set: str | None = about("protocol", "another benchmark to test on (docs/benchmarks.md); empty: data_set")
    test_root: str | None = about("place", "its folder; empty: its own default")
    test_fold: NotNegative | None = about("protocol", "its fold; empty: split")
    protocol: Literal["released", "seeded", "hsnet", "fptrans"] = about(
        "protocol", "how test episodes are drawn: released, seeded, hsnet, fptrans"
    )
    draw_workers: Positive = about("protocol", "loader workers that the released protocol's draw simulates")
    lists: str | None = about("place", "folder of a benchmark's public lists; empty: lists in the data's folder")
    variant: str | None = about(
        "protocol", "a convention of the test_set, such as B of coco2pascal; empty: its default"
    )
    metric_size: Literal["original", "input"] = derived(
        "protocol", "where scores meet the truth: original or input size; empty: input under hsnet, else original"
    )
    test_episodes: Positive | None = derived(
        "protocol", "empty: 1000, COCO 4000; with another test_set or protocol as many as it is known by"
    )
    seeds: Annotated[list[Seed], Field(min_length=1), BeforeValidator(as_list)] = about(
        "seed", "one test run each; the paper's error bars: [0, 1, 2, 3, 321]"
    )
    episodes_file: str | None = about("protocol", "JSON Lines of episodes to take instead")
    feature_cache_mb: NotNegative = about("machine", "for features of images already seen")
    sharpen: bool = about("prediction", "draw outlines to the edges of one's own images (a guided filter)")

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, content: Any) -> Any:
        """An empty value of a key that can be worked out says nothing."""
        if not isinstance(content, Mapping):
            return content
        return {key: value for key, value in content.items() if value is not None or key not in DERIVED}

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str | None) -> str | None:
        if value is not None and value not in BACKBONES and not re.fullmatch(r"timm/\w[\w.-]*", value):
            raise ValueError(f"should be {', '.join(BACKBONES)} or timm/NAME, NAME being a model of timm")
        return value

    @field_validator("amp", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # as YAML reads a bare `off`

    def model_post_init(self, context: Any) -> None:
        """Work out what was not given."""
        for key, derive in DERIVED.items():
            if key not in self.model_fields_set:
                self.__dict__[key] = derive(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "Config":
        """A copy with changes, which are not validated; what was worked out is worked out again."""
        copy = super().model_copy(update=update, deep=deep)
        copy.model_post_init(None)
        return copy

    def given(self) -> dict[str, Any]:
        """Every key but those that were worked out from others."""
        return self.model_dump(exclude_unset=True)

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
        return min(self.workers, processor_count()) if self.loader_workers is None else self.loader_workers

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

    @property
    def test_seeds(self) -> tuple[int, ...]:
        """A seed for each test run, each once: `seeds`, unless the protocol or the episodes file has its own."""
        if self.episodes_file:
            return tuple(self.seeds[:1])
        own = PROTOCOL_SEEDS.get(self.protocol)
        return tuple(dict.fromkeys(self.seeds)) if own is None else (own,)

    def to_yaml(self) -> str:
        """A flat file of what was given, which `load_config` reads back as an equal Config."""
        return yaml.dump(self.given(), Dumper=YamlDumper, sort_keys=False)


PROTOCOL_SEEDS = {"hsnet": 0, "fptrans": 5678}  # with which these draw, whatever `seeds` says


def _default_episodes(cfg: Config) -> int | None:
    own = cfg.test_set is None and cfg.protocol in ("released", "seeded")
    return (4000 if cfg.data_set == "coco" else 1000) if own else None


DERIVED: dict[str, Callable[[Config], Any]] = {
    "feature_size": lambda cfg: 64 if cfg.train_h <= 473 else 80,
    "amp": lambda cfg: "auto" if cfg.arch == "HMNetAMP" else "off",
    "metric_size": lambda cfg: "input" if cfg.protocol == "hsnet" else "original",
    "test_episodes": _default_episodes,
}


def topics_of(key: str) -> list[str]:
    """What a key is about, the main topic first."""
    extra = Config.model_fields[key].json_schema_extra
    return list(extra["topics"])  # type: ignore[index, arg-type]


def keys_of(*topics: str) -> tuple[str, ...]:
    """The keys whose main topic is one of TOPICS, for "base" also the others about stage 1; in the schema's order."""
    wanted = set(topics)
    return tuple(key for key in Config.model_fields if wanted & {topics_of(key)[0], *({"base"} & {*topics_of(key)})})


# Keys whose empty value means something: None, or a value worked out from other keys.
NULLABLE_KEYS = (
    frozenset(name for name, field in Config.model_fields.items() if type(None) in get_args(field.annotation))
    | DERIVED.keys()
)

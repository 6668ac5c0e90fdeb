"""Reading config files: YAML with `base:` inheritance, files written for BAM, and `--opts key value ...`."""

import difflib
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from util.dialect import YamlLoader
from util.errors import UserError
from util.folds import WITH_ALL
from util.schema import BAM_KEYS, CLASS_COUNTS, DERIVED, NULLABLE_KEYS, RENAMED_KEYS, UNUSED_KEYS, Config

__all__ = ["Config", "is_stage_1", "load_config", "restore_config"]

HOME = Path(__file__).resolve().parent.parent
BASE_DIR = HOME / "config" / "base"
SECTIONS = frozenset({"data", "train", "method", "test_finetune"})
UNFOLDED = 10_000  # values that a file may stand for, aliases unfolded
MERGE = "tag:yaml.org,2002:merge"
# What keys of BAM's files for stage 1 mean here.
STAGE_1 = {
    **{"train_h": "base_train_h", "batch_size": "base_batch_size", "epochs": "base_epochs"},
    **{"base_lr": "base_lr_encoder", "index_split": "base_index_split", "stop_interval": "base_stop_interval"},
    **{"scale_min": "base_scale_min", "scale_max": "base_scale_max"},
}
SHORT = reprlib.Repr()  # of values in messages
SHORT.maxstring = SHORT.maxother = 200
short_repr = SHORT.repr


class Setting(NamedTuple):
    """A value and where it was written: a file, or --opts."""

    value: Any
    source: str


def load_config(path: str | Path, overrides: Sequence[str] = (), stage: int = 2) -> Config:
    """Read an experiment: defaults, then the files it is based on, then the file itself, then the overrides.

    A path such as config/pascal/... is one of the installed files where the working directory has none. `overrides` is
    the flat list key value key value that follows --opts. A file without `base:`, such as one written
    for BAM, is based on config/base/coco.yaml where its data_set is coco, on config/base/pascal.yaml otherwise. One
    for BAM's stage 1 (`is_stage_1`) is read in stage 1 as what its keys mean there, with one warning.
    Raises UserError naming the file, the key, the value and what was expected.
    """
    file, words = _read_chain(_find(path), ()), _read_overrides(overrides)
    if stage == 1 and _is_stage_1(path, file):
        file, words = _stage_1(file), _stage_1(words)
        pairs = ", ".join(f"{name} as {STAGE_1[name]}" for name in STAGE_1 if STAGE_1[name] in file)
        warnings.warn(f"{path}: a config of stage 1 alone, which reads {pairs}", stacklevel=2)
    return _resolve(file, words)


def load_mapping(content: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """The config that `Config.given` put into a checkpoint, as `load_config` reads a file; `source` is its name."""
    return _resolve(_without_derived(_settings(dict(content), source)), _read_overrides(overrides))


def _resolve(file: dict[str, Setting], words: dict[str, Setting]) -> Config:
    given = file | words
    data_set = given["data_set"].value if "data_set" in given else "pascal"
    settings = _defaults(data_set) | _drop_unused(given)
    cfg = _validate(settings)
    for key, remedy in _broken_relations(cfg):
        raise _wrong_value(settings, key, getattr(cfg, key), remedy)
    return cfg


def _broken_relations(cfg: Config) -> Iterator[tuple[str, str]]:
    """The keys whose values do not fit those of other keys, each with what it should be."""
    if cfg.split >= cfg.folds + (cfg.data_set in WITH_ALL):
        yield "split", f"should be below folds ({cfg.folds})"
    if cfg.test_set is None and cfg.test_fold is not None and cfg.test_fold >= cfg.folds:
        yield "test_fold", f"should be below folds ({cfg.folds})"
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


def is_stage_1(path: str | Path) -> bool:
    """Whether a file is one of BAM's for stage 1: called ..._base.yaml, and without a key of stage 1 of its own."""
    return _is_stage_1(path, _read_chain(_find(path), ()))


def restore_config(content: Mapping[str, Any]) -> Config | None:
    """The config that a result or checkpoint holds; keys that are newer have their defaults. None if it is none."""
    defaults = {key: setting.value for key, setting in _defaults(content.get("data_set")).items()}
    try:
        renamed = {RENAMED_KEYS.get(key, key): value for key, value in content.items() if key not in UNUSED_KEYS}
        return Config(**(defaults | _with_draw_workers(renamed)))
    except (ValidationError, TypeError):
        return None


def _find(path: str | Path) -> Path:
    installed = HOME / path
    is_missing = Path(path).parts[:1] == ("config",) and not Path(path).exists()
    return installed if is_missing and installed.is_file() else Path(path)


def _is_stage_1(path: str | Path, settings: Mapping[str, Any]) -> bool:
    return Path(path).stem.endswith("_base") and not settings.keys() & {*STAGE_1.values()}


def _stage_1(settings: dict[str, Setting]) -> dict[str, Setting]:
    return {STAGE_1.get(key, key): setting for key, setting in settings.items() if key != "train_w"}


def _with_draw_workers(content: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions drew the released protocol's episodes with `workers`."""
    is_earlier = "metric_size" in content and "workers" in content and "draw_workers" not in content
    return content | ({"draw_workers": content["workers"]} if is_earlier else {})


def _without_derived(settings: dict[str, Setting]) -> dict[str, Setting]:
    """The settings; those of a run of an earlier version without what it had worked out from others and saved."""
    earlier = _with_draw_workers(settings)
    if "draw_workers" in settings or not {*DERIVED, "draw_workers"} <= earlier.keys():
        return settings
    plain = {key: setting for key, setting in earlier.items() if key not in DERIVED}
    data_set = plain["data_set"].value if "data_set" in plain else None
    derived = _validate(_defaults(data_set) | {key: plain[key] for key in plain if key not in UNUSED_KEYS})
    return {key: earlier[key] for key in earlier if key in plain or earlier[key].value != getattr(derived, key)}


def _defaults(data_set: Any) -> dict[str, Setting]:
    return _read_chain(BASE_DIR / ("coco.yaml" if data_set == "coco" else "pascal.yaml"), ())


def _read_chain(path: Path, children: tuple[Path, ...]) -> dict[str, Setting]:
    """The settings of a file and of all that it is based on."""
    if path.resolve() in (child.resolve() for child in children):
        raise UserError(f"{children[-1]}: base: {' -> '.join(map(str, (*children, path)))} is a cycle; remove one")
    if children and not path.is_file():
        raise UserError(f"{children[-1]}: base: there is no file {path}; the path is relative to the file's own folder")
    settings = _read_file(path)
    base = settings.pop("base", None)
    if base is None or base.value is None:
        return _without_derived(settings)
    if not isinstance(base.value, str):
        raise UserError(f"{path}: base: {short_repr(base.value)} should be the path of a config file")
    return _read_chain(path.parent / base.value, (*children, path)) | settings


def _read_file(path: Path) -> dict[str, Setting]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read this config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this config file is not UTF-8 text: {error.reason}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict | None):
        raise UserError(f"{path}: a config file should hold `key: value` lines, not a {type(tree).__name__}")
    return _settings(_flatten(tree or {}, str(path)), str(path))


def _read_overrides(overrides: Sequence[str]) -> dict[str, Setting]:
    if len(overrides) % 2:
        raise UserError(f"--opts: should be pairs of key and value, but {overrides[-1]!r} has no partner")
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return _settings({key: parse_yaml(text, f"--opts {key}") for key, text in pairs}, "--opts")


def parse_yaml(text: str, source: str) -> Any:
    """What a text in YAML holds; UserError, which begins with `source`, where it is none or has a key twice."""
    try:
        loader = YamlLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _unfolded(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}: line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # a value such as the date 2024-13-45
        raise UserError(f"{source}: not valid YAML: {error}") from error


def _unfolded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for with its aliases unfolded; YAMLError for too many, and for a key twice."""
    if size := sizes.get(id(node)):
        return size
    if id(node) in sizes:
        raise yaml.MarkedYAMLError(problem="an alias of what it is in", problem_mark=node.start_mark)
    sizes[id(node)] = 0
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    children = node.value if isinstance(node, yaml.SequenceNode) else [child for pair in pairs for child in pair]
    sizes[id(node)] = 1 + sum(_unfolded(child, sizes) for child in children)
    if sizes[id(node)] > UNFOLDED:
        raise yaml.MarkedYAMLError(problem=f"more than {UNFOLDED} values", problem_mark=node.start_mark)
    keys = set()
    for key, _ in pairs:
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
            keys.add(key.value)
    return sizes[id(node)]


def _flatten(tree: dict[Any, Any], source: str) -> dict[Any, Any]:
    """Sections are only headings: their keys are global; an empty section says nothing. UserError for a key twice."""
    flat: dict[Any, Any] = {}
    for key, value in tree.items():
        part = {}
        if isinstance(value, dict) and key not in Config.model_fields:
            part = value
        elif value is not None or str(key).lower() not in SECTIONS:
            part = {key: value}
        for again in flat.keys() & part.keys():
            if flat[again] != part[again]:
                raise UserError(f"{source}: the key {again!r} is there twice, in two sections; remove one")
        flat |= part
    return flat


def _settings(values: dict[Any, Any], source: str) -> dict[str, Setting]:
    """Known keys with their source; an empty value of a key that needs one leaves the default in place."""
    known = [*Config.model_fields, *BAM_KEYS, *RENAMED_KEYS, *UNUSED_KEYS, "base"]
    settings = {}
    for key, value in values.items():
        if key not in known or (key == "base" and source == "--opts"):
            raise UserError(
                f"{source}: unknown key {short_repr(key)} (value {short_repr(value)}); nearest is {_nearest(key)!r}"
            )
        if key in RENAMED_KEYS:
            warnings.warn(f"{source}: {key} is now called {RENAMED_KEYS[key]}", stacklevel=2)
        key = (BAM_KEYS | RENAMED_KEYS).get(key, key)
        if value == "None":  # as Python writes it, and so do files for BAM
            value = "none" if key in ("srm", "qim") else None
        if value is not None or key in NULLABLE_KEYS:
            settings[key] = Setting(value, source)
    return settings


def _nearest(key: Any) -> str:
    names = {name.lower(): name for name in sorted([*Config.model_fields, *UNUSED_KEYS])}
    return names[difflib.get_close_matches(str(key).lower(), names, n=1, cutoff=0.0)[0]]


def _drop_unused(settings: dict[str, Setting]) -> dict[str, Setting]:
    unused = sorted(UNUSED_KEYS & settings.keys())
    if unused:
        sources = ", ".join(dict.fromkeys(settings[key].source for key in unused))
        warnings.warn(f"{sources}: not used here and ignored: {', '.join(unused)}", stacklevel=4)
    return {key: setting for key, setting in settings.items() if key not in UNUSED_KEYS}


def _validate(settings: dict[str, Setting]) -> Config:
    try:
        return Config(**{key: setting.value for key, setting in settings.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        reason = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
        raise _wrong_value(settings, key, first["input"], reason) from None


def _wrong_value(settings: dict[str, Setting], key: str, value: Any, reason: str) -> UserError:
    return UserError(f"{settings[key].source}: {key}: {short_repr(value)} {reason}")

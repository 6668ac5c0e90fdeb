"""What a checkpoint was trained on, written into it and checked before it is tested."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.benchmarks.table import open_benchmark
from engine.paths import run_tag
from util.checkpoint import read_entry, read_metadata
from util.config import Config, load_config, load_mapping, restore_config, short_repr
from util.errors import UserError
from util.schema import keys_of

PLACE = re.compile(r"(?:^|/)(?P<data_set>[^/]+)/[^/]+/split(?P<split>\d+)/(?:.*/)?(?P<name>[^/]+)$")  # as in exp/
SHOT = re.compile(r"^(?:train|best_)(\d*)(?:_epoch|shot)")


def training_origin(cfg: Config) -> dict[str, Any]:
    """Data set, split, shots and the names of the classes that a training sees."""
    benchmark = open_benchmark(cfg)
    names = benchmark.names()
    classes = [names[class_id] for class_id in benchmark.wanted("train")]
    return {"data_set": cfg.data_set, "split": cfg.split, "shot": cfg.trained_shot or cfg.shot, "classes": classes}


def checkpoint_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of the training that wrote a checkpoint, with `--opts` on top.

    It lies in the checkpoint; for those of a release, in the file that training leaves beside it or a folder above.
    UserError where there is neither, or what is there is no config.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    stored = read_entry(path, "config")
    if isinstance(stored, Mapping):
        return load_mapping(stored, f"{path}: config", overrides)
    shots = re.match(r"best_(\d+)shot|train(\d+)_", path.name)
    name = f"config{run_tag(int(shots[1] or shots[2]) if shots else 1)}.yaml"
    for place in (path.parent / name, path.parent.parent / name):
        if place.is_file():
            return load_config(place, overrides)
    raise UserError(f"{path}: holds no config, nor lies {name} beside it; say by --config FILE how it was trained")


def network_note(content: Mapping[str, Any], cfg: Config) -> str | None:
    """A note on how the network differs from the one that the checkpoint's own config describes; None if nothing does.

    Both may be meant: a test can leave out a part that training had. Keys without influence on it are left out.
    """
    stored = content.get("config")
    there = restore_config(stored) if isinstance(stored, Mapping) else None
    if there is None:
        return None
    keys = [key for key in keys_of("network") if key not in ("amp", "trained_shot")]
    pairs = {key: (getattr(there, key), getattr(cfg, key)) for key in keys}
    changed = [f"{key} {old!r}, now {new!r}" for key, (old, new) in pairs.items() if old != new]
    return f"the network was trained with {'; '.join(changed)}" if changed else None


def check_origin(path: Path, content: Mapping[str, Any], cfg: Config) -> str | None:
    """A note on what the checkpoint was trained on where it is worth one.

    A .safetensors file says so in its metadata; a checkpoint that says nothing of it, such as a released one, is judged
    by its path. UserError when it was trained on anything else than the config says, so that the test may show classes
    that it has seen, unless `allow_other_split` is set.
    """
    wanted, stated = training_origin(cfg), content.get("trained_on") or _origin_by_metadata(path)
    if not isinstance(stated, Mapping):
        raise UserError(
            f"{path}: trained_on should map {', '.join(wanted)} to what it was trained on, not be "
            f"{short_repr(stated)}; take the file that training wrote"
        )
    by_path, found = not stated, stated or _origin_by_path(path)
    pairs = [(key, found[key], wanted[key]) for key in wanted if key in found]
    differences = [f"{key} {value!r}, not {other!r}" for key, value, other in pairs if value != other]
    if differences and not cfg.allow_other_split:
        raise UserError(
            f"{path}: {'by its path ' if by_path else ''}trained on {'; '.join(differences)}; test it with the config "
            "of its training, or as it is by `--opts allow_other_split True`"
        )
    if differences:
        return f"{path}: tested although trained on {'; '.join(differences)}"
    place = f"by its path it is {found['data_set']} split {found['split']}" if found else "nor does its path"
    return f"{path}: does not say what it was trained on; {place}" if by_path else None


def _origin_by_metadata(path: Path) -> dict[str, Any]:
    """What `tools.share` has written into a .safetensors file; empty for others."""
    about = read_metadata(path)
    numbers = {key: int(about[key]) for key in ("split", "shot") if about.get(key, "").isdecimal()}
    return {"data_set": about["data_set"], **numbers} if len(numbers) == 2 and "data_set" in about else {}


def _origin_by_path(path: Path) -> dict[str, Any]:
    """What a path such as exp/pascal/HMNet/split0/resnet50/snapshot/train5_epoch_80_0.7.pth says; empty for others."""
    place = PLACE.search(path.absolute().as_posix())
    if not place:
        return {}
    shot = SHOT.match(place["name"])
    shots = {"shot": int(shot[1] or 1)} if shot else {}
    return {"data_set": place["data_set"], "split": int(place["split"]), **shots}

"""What identifies a test: its files, its network and what it is tested on."""

import platform
import re
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from dataset.benchmarks.table import open_benchmark, test_config
from util.config import Config, load_config
from util.errors import UserError
from util.files import file_digest
from util.schema import keys_of

PACKAGES = ("hmnet", "torch", "torchvision", "timm", "numpy")
# Keys whose change by --opts is told in a result's name: the same weights have other metrics then
RELATED = ("val_size", "amp", "trained_shot", "kshot_unsort", "corrections", "seeds", *keys_of("protocol"))
NAMED = ("test_set", "test_fold", "test_classes", "variant", "protocol", "shot", "ann_type")  # are so in any case
PLACES = ("arch", "split", "ensemble", "layers", "vgg", "backbone")  # are so in the name of the experiment's folder


class TestIdentity(NamedTuple):
    """Found before a test begins, as its weights may change while it runs."""

    path: Path  # of the result
    panels: Path  # folder of the panels of the last test of this kind
    about: dict[str, Any]  # what `engine.results.AnyTest` holds, but for `test`


def identify_test(
    cfg: Config, config_file: str, method: str, weights: Path | None, path: Path | None, ending: str = ""
) -> TestIdentity:
    """The identity of a test of a method by a config file and its overrides, `cfg`; its result goes to `path`.

    Without a path, it goes to the experiment's folder under a name that ends in `ending`.
    """
    path = path or cfg.experiment_dir / f"result_{result_name(cfg, method, config_file, weights)}{ending}.json"
    about = {
        "path": path,
        "method": method,
        "weights": weights and str(weights),
        "weights_digest": weights and file_digest(weights),
        "versions": package_versions(),
        "config": cfg.model_dump(),
        "classes": open_benchmark(test_config(cfg)).names(),
    }
    return TestIdentity(path, path.parent / f"panels_{result_name(cfg, method)}", about)


def result_name(cfg: Config, method: str, config_file: str | Path | None = None, weights: Path | None = None) -> str:
    """What tells the files of tests apart that share a folder.

    With the config file, what `cfg` has changed about its seeds, sizes and weights is in the name too; without weights,
    of a training-free method, also what is changed about the network.
    """
    usual = usual_config(config_file, cfg) if config_file else cfg
    parts = [f"test_{cfg.shot}shot", *([] if method == "HMNet" else [method])]
    parts += ["bbox"] * (cfg.ann_type == "bbox")
    if cfg.test_set:
        parts += [f"{cfg.test_set}{test_config(cfg).split}", *filter(None, [cfg.variant])]
    parts += [f"fold{cfg.test_fold}"] * (cfg.test_fold is not None and not cfg.test_set)
    parts += ["base"] * (cfg.test_classes == "base") + [cfg.protocol] * (cfg.protocol != "released")
    for key in dict.fromkeys((*RELATED, *(() if weights else keys_of("network")))):
        value = getattr(cfg, key)
        if value != getattr(usual, key) and key not in NAMED:
            parts.append(key + re.sub(r"[^\w.]+", "-", str(value)).strip("-"))
    if weights and cfg.weight != usual.weight:
        inside = weights.resolve().parent == (cfg.experiment_dir / "snapshot").resolve()
        parts.append(weights.stem if inside else f"{weights.stem}-{file_digest(weights)[:8]}")
    return "_".join(parts)


def usual_config(path: str | Path, cfg: Config) -> Config:
    """The settings of a config file with those of `cfg` that names tell anyway, and from which others are derived.

    `cfg` itself where the file is wrong without its other overrides.
    """
    told = {key: getattr(cfg, key) for key in (*NAMED, *PLACES) if getattr(cfg, key) is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # were shown when `cfg` was read
        try:
            return load_config(path, [str(word) for pair in told.items() for word in pair])
        except UserError:
            return cfg


def method_name(cfg: Config) -> str:
    """The name of a config's method."""
    return cfg.arch.removesuffix("AMP")


def package_versions() -> dict[str, str]:
    """The versions that a test ran with."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # of this project's own, when it is run from its folder
            found[name] = version(name)
    return found

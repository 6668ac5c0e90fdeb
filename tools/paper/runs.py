"""Test runs: those that a table wants, those that have been made, and the commands for the rest."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.evaluation import expected_weights
from util.config import Config, load_config, restore_config
from util.errors import UserError
from util.schema import keys_of, run_tag

EXPERIMENT = re.compile(r"config/(pascal|coco)/\1_split(\d)_([a-z0-9]+)_(\w+)\.yaml")
PORT = "1234"  # as in the README
COMPONENTS = ("self_blocks", "srm", "qim")
IDENTITY = (
    *("data_set", "folds", "split", "use_split_coco", "backbone_name", "shot", "ensemble", "blocks", "ann_type"),
    *("test_set", "test_fold"),
)
PLACED = ("split", "shot")  # already in the names of folders and files
# What a table would rather have as the paper has it; a run that differs is shown and the difference named.
TOPICS = keys_of("network", "recipe", "protocol")
SETTINGS = tuple(key for key in TOPICS if key not in (*COMPONENTS, *IDENTITY, "fusion"))


class Measured(NamedTuple):
    """The figures of one test with one seed."""

    path: Path
    time: float  # when the file was written
    cfg: Config
    seed: int
    miou: float  # in per cent
    fb_iou: float  # in per cent
    seconds: float
    episode_iou: float  # mean over episodes, in per cent
    interval: tuple[float, float]  # 95 % bootstrap interval of that mean


class Figures(NamedTuple):
    """Means over training seeds of tests that are alike."""

    miou: float
    miou_spread: float | None  # standard deviation over the runs
    fb_iou: float
    seconds: float
    episode_iou: float
    interval: tuple[float, float]  # limits, each averaged over the runs
    runs: int
    paths: tuple[Path, ...]  # their result files
    differences: tuple[str, ...]  # from the settings that were wanted


@dataclass(frozen=True)
class RunSpec:
    """One test: a config file, what differs from it in the network (and so in training), and in the test alone."""

    config: str
    network: Mapping[str, Any] = field(default_factory=dict)
    testing: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None  # of the episodes; None: the first of the config
    identity: tuple[str, ...] = ()  # settings in which a run must not differ
    training_seed: int | None = None  # None: any
    result: str | None = None  # the result's file name, where others share the folder

    def trained_with(self, seed: int) -> "RunSpec":
        """The same run, trained with this seed; other seeds than the config's have a folder of their own."""
        changed = {} if seed == _read(self.config).manual_seed else {"manual_seed": seed}
        return replace(self, network={**self.network, **changed}, training_seed=seed)

    @property
    def folder(self) -> str:
        """The value of `exp`: the config's own, and below it a folder for every other network."""
        exp = _read(self.config).exp
        changes = {key: value for key, value in sorted(self.network.items()) if key not in PLACED}
        return "/".join([exp, *(["_".join(f"{k}-{v}".lower() for k, v in changes.items())] if changes else [])])

    @property
    def cfg(self) -> Config:
        """The whole configuration of the test."""
        return _read(self.config).model_copy(update={**self.network, **self.testing, "exp": self.folder})

    @property
    def first_seed(self) -> int:
        """The seed of the episodes."""
        return self.cfg.seeds[0] if self.seed is None else self.seed

    def find(self, measured: Iterable[Measured]) -> Figures | None:
        """The figures of the runs nearest to what is wanted, the newest of each training seed."""
        cfg = self.cfg
        if self.training_seed is not None:
            measured = [run for run in measured if run.cfg.manual_seed == self.training_seed]
        fitting = [run for run in measured if identity(run.cfg, self.identity) == identity(cfg, self.identity)]
        seeded = [run for run in fitting if run.seed == self.first_seed]
        if self.seed is not None or seeded:
            fitting = seeded
        if not fitting:
            return None
        compared = [(differences(run.cfg, cfg), run) for run in sorted(fitting, key=lambda run: run.time)]
        nearest = min(reversed(compared), key=lambda pair: len(pair[0]))[0]
        newest = list({run.cfg.manual_seed: run for difference, run in compared if difference == nearest}.values())
        mious = [run.miou for run in newest]
        spread = stdev(mious) if len(mious) > 1 else None
        low, high = (fmean(limits) for limits in zip(*(run.interval for run in newest), strict=True))
        return Figures(
            miou=fmean(mious),
            miou_spread=spread,
            fb_iou=fmean(run.fb_iou for run in newest),
            seconds=fmean(run.seconds for run in newest),
            episode_iou=fmean(run.episode_iou for run in newest),
            interval=(low, high),
            runs=len(newest),
            paths=tuple(run.path for run in newest),
            differences=nearest,
        )

    def commands(self) -> list[str]:
        """What makes this run, as far as it is not made: base learner, meta-training, test."""
        cfg = self.cfg
        network = {**self.network, **({"exp": self.folder} if self.folder != _read(self.config).exp else {})}
        lines = []
        if not is_trained(cfg):
            if cfg.ensemble and not cfg.base_learner_path.is_file():
                place = {key: value for key, value in self.network.items() if key in PLACED}
                lines.append(self._command("train_base.py", {**place, "resume": "auto"}))
            lines.append(self._command("train.py", {**network, "resume": "auto"}))
        result = ["--result", str(cfg.experiment_dir / self.result)] if self.result else []
        return [*lines, self._command("test.py", {**network, **self.testing}, *result)]

    def _command(self, script: str, options: Mapping[str, Any], *arguments: str) -> str:
        """The README's command for a config of config/, else the launcher, which takes any file."""
        if match := EXPERIMENT.fullmatch(self.config):
            data, split, net, name = match.groups()
            words = {
                "train_base.py": ["train_base.sh", PORT, data, split, net],
                "train.py": [f"train_{data}.sh", PORT, split, net, name],
                "test.py": [f"test_{data}.sh", split, net, name],
            }[script]
        else:
            words = ["tools/launch.sh", "1" if script == "test.py" else "gpus", "free", self.config, script]
        values = [word for key, value in options.items() for word in (key, json.dumps(value).strip('"'))]
        return shlex.join(["sh", *words, *arguments, *(["--opts", *values] if values else [])])


@cache
def _read(config: str) -> Config:
    return load_config(config)


def is_trained(cfg: Config) -> bool:
    """Whether there are weights to test, released ones or those of a training that has finished."""
    course = cfg.experiment_dir / f"result{run_tag(cfg.shot)}.json"
    finished = not course.is_file() or read_json(course).get("finished", True)
    return finished and expected_weights(cfg).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds, nothing if it is not a mapping; UserError if it is not JSON or cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); remove it or make it again") from None
    return content if isinstance(content, dict) else {}


def read_runs(exp: Path) -> list[Measured]:
    """Every test of a network in the result files below a folder; files of other kinds and versions are passed over."""
    runs = []
    for path in sorted(exp.rglob("result*.json")):
        content = read_json(path)
        if content.get("kind") != "test" or content.get("method") != "hmnet":
            continue
        cfg = restore_config(content["config"])
        if cfg is None:
            continue
        time = path.stat().st_mtime
        for row in content["results"]:
            figures = 100 * row["miou"], 100 * row["fb_iou"], row["seconds"], 100 * row["mean_episode_iou"]
            low, high = (100 * limit for limit in row["interval"])
            runs.append(Measured(path, time, cfg, row["seed"], *figures, (low, high)))
    return runs


def identity(cfg: Config, more: Sequence[str] = ()) -> tuple[Any, ...]:
    """What makes two tests the same row and column of a table."""
    components = tuple(getattr(cfg, key) for key in COMPONENTS) if cfg.fusion_name == "hmnet" else ()
    return (cfg.fusion_name, components, *(getattr(cfg, key) for key in (*IDENTITY, *more)))


def differences(cfg: Config, wanted: Config) -> tuple[str, ...]:
    """The settings in which a run differs from what is wanted."""
    pairs = [(key, getattr(cfg, key), getattr(wanted, key)) for key in SETTINGS]
    return tuple(f"{key} {value} instead of {other}" for key, value, other in pairs if value != other)

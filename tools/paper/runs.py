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
from engine.identity import method_name
from engine.results import OneClassResult, SeedMetrics, TrainingResult, read_result, results_below, without_stale
from model.methods import find_method
from util.config import Config, load_config
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
SETTINGS = tuple(
    key for key in keys_of("network", "recipe", "protocol") if key not in (*COMPONENTS, *IDENTITY, "fusion")
)


class Measured(NamedTuple):
    """A test with one seed."""

    result: OneClassResult
    metrics: SeedMetrics


class Averages(NamedTuple):
    """Means over training seeds of tests that are alike, IoUs in per cent."""

    miou: float
    miou_spread: float | None  # standard deviation over the runs
    fb_iou: float
    seconds: float
    episode_iou: float  # mean over episodes
    interval: tuple[float, float] | None  # 95 % bootstrap interval of that mean: limits, each averaged over the runs
    query_images: tuple[int | None, ...]  # how many distinct ones each run has
    results: tuple[OneClassResult, ...]
    differences: tuple[str, ...]  # from the settings that were wanted


@dataclass(frozen=True)
class RunSpec:
    """One test: a config file, what differs from it in the network (and so in training), and in the test alone."""

    config: str
    network: Mapping[str, Any] = field(default_factory=dict)
    testing: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None  # of the episodes; None: the first of the config
    identity: Sequence[str] = ()  # settings in which a run must not differ
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

    def find(self, measured: Iterable[Measured]) -> Averages | None:
        """The averages of the runs nearest to what is wanted, the newest of each training seed."""
        cfg, seeds = self.cfg, [self.training_seed]
        own = [run for run in measured if self.training_seed is None or run.result.cfg.manual_seed in seeds]
        wanted = identity(cfg, method_name(cfg), self.identity)
        fitting = [run for run in own if identity(run.result.cfg, run.result.method, self.identity) == wanted]
        first = cfg.test_seeds[0] if self.seed is None else self.seed
        seeded = [run for run in fitting if run.metrics.seed == first]
        fitting = seeded if self.seed is not None or seeded else fitting
        if not fitting:
            return None
        compared = [(differences(run.result.cfg, cfg), run) for run in sorted(fitting, key=lambda run: run.result.time)]
        nearest = min(reversed(compared), key=lambda pair: len(pair[0]))[0]
        return average(
            {run.result.cfg.manual_seed: run for found, run in compared if found == nearest}.values(), nearest
        )

    def commands(self) -> list[str]:
        """What makes this run, as far as it is not made: base learner, meta-training, test."""
        cfg = self.cfg
        network = {**self.network, **({"exp": self.folder} if self.folder != _read(self.config).exp else {})}
        lines = []
        if not is_trained(cfg):
            if find_method(cfg.arch).has_base_learner(cfg) and not cfg.base_learner_path.is_file():
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


def average(runs: Iterable[Measured], found_differences: tuple[str, ...] = ()) -> Averages:
    """Means over runs."""
    results, metrics = zip(*runs, strict=True)
    mious, limits = [100 * one.miou for one in metrics], [one.interval for one in metrics if one.interval]
    return Averages(
        miou=fmean(mious),
        miou_spread=stdev(mious) if len(mious) > 1 else None,
        fb_iou=fmean(100 * one.fb_iou for one in metrics),
        seconds=fmean(one.seconds for one in metrics),
        episode_iou=fmean(100 * one.mean_episode_iou for one in metrics),
        interval=(fmean(100 * low for low, _ in limits), fmean(100 * high for _, high in limits)) if limits else None,
        query_images=tuple(one.query_images for one in metrics),
        results=results,
        differences=found_differences,
    )


def is_trained(cfg: Config) -> bool:
    """Whether there are weights to test, released ones or those of a training that has finished."""
    course = cfg.experiment_dir / f"result{run_tag(cfg.shot)}.json"
    finished = not course.is_file() or read_result(course, TrainingResult).finished
    return finished and expected_weights(cfg).is_file()


def read_runs(exp: Path) -> list[Measured]:
    """Every test below a folder with each of its seeds; a warning names one whose weights are others by now."""
    results = without_stale(results_below(exp, OneClassResult))
    return [Measured(result, metrics) for result in results for metrics in result.results]


def identity(cfg: Config, method: str, more: Sequence[str] = ()) -> tuple[Any, ...]:
    """What makes two tests the same row and column of a table."""
    method, fusion = ("HMNet", "concat") if method == "concat" else (method, cfg.fusion_name)  # the same network
    components = tuple(getattr(cfg, key) for key in COMPONENTS) if fusion == "hmnet" else ()
    return (method, fusion, components, *(getattr(cfg, key) for key in (*IDENTITY, *more)))


def differences(cfg: Config, wanted: Config, keys: Sequence[str] = SETTINGS) -> tuple[str, ...]:
    """The settings in which a run differs from what is wanted."""
    pairs = [(key, getattr(cfg, key), getattr(wanted, key)) for key in keys]
    return tuple(f"{key} {value} instead of {other}" for key, value, other in pairs if value != other)

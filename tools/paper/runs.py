"""Test runs: those that a table wants, those that have been made, and the commands for the rest."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.evaluation import expected_weights
from engine.identity import method_name
from engine.paths import run_tag
from engine.results import OneClassResult, SeedMetrics, TrainingResult, current_results, read_result
from model.methods import find_method
from util.config import Config, load_config
from util.schema import keys_of

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


class Run(NamedTuple):
    """A test with one seed."""

    result: OneClassResult
    metrics: SeedMetrics


@dataclass(frozen=True)
class RunSpec:
    """One test: a config file, what differs from it in the network (and so in training), and in the test alone."""

    config: str
    network: Mapping[str, Any] = field(default_factory=dict)
    testing: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None  # of the episodes; None: the first of the config
    identity: Sequence[str] = ()  # settings in which a run must not differ
    result: str | None = None  # the result's file name, where others share the folder

    def trained_with(self, seed: int | None) -> "RunSpec":
        """The same run, trained with this seed, if any; other ones than the config's have a folder of their own."""
        usual = seed in (None, _read(self.config).manual_seed)
        return self if usual else replace(self, network={**self.network, "manual_seed": seed})

    @property
    def folder(self) -> str:
        """The value of `exp`: the config's own, and below it a folder for every other network."""
        changes = [f"{key}-{value}".lower() for key, value in sorted(self.network.items()) if key not in PLACED]
        return "/".join([_read(self.config).exp, *(["_".join(changes)] if changes else [])])

    @property
    def cfg(self) -> Config:
        """The whole configuration of the test."""
        return _read(self.config).model_copy(update={**self.network, **self.testing, "exp": self.folder})

    def find(self, runs: Sequence[Run]) -> list[Run]:
        """The runs nearest to what is wanted, the newest of each training seed."""
        cfg = self.cfg
        wanted = identity(cfg, method_name(cfg), self.identity)
        fitting = [run for run in runs if identity(run.result.cfg, run.result.method, self.identity) == wanted]
        seed = cfg.test_seeds[0] if self.seed is None else self.seed
        seeded = [run for run in fitting if run.metrics.seed == seed]
        fitting = fitting if self.seed is None and not seeded else seeded
        by_difference: dict[tuple[str, ...], dict[int, Run]] = {}
        for run in sorted(fitting, key=lambda run: run.result.time):
            found = differences(run.result.cfg, cfg)
            by_difference[found] = {**by_difference.pop(found, {}), run.result.cfg.manual_seed: run}  # newest last
        return list(by_difference[min(reversed(by_difference), key=len)].values()) if by_difference else []

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


def is_trained(cfg: Config) -> bool:
    """Whether there are weights to test, released ones or those of a training that has finished."""
    course = cfg.experiment_dir / f"result{run_tag(cfg.shot)}.json"
    finished = not course.is_file() or read_result(course, TrainingResult).finished
    return finished and expected_weights(cfg).is_file()


def read_runs(exp: Path, training_seeds: Sequence[int] = ()) -> list[Run]:
    """Every test of networks trained with these seeds (none: any) below a folder, with each seed of its episodes.

    A warning names one whose weights are others by now.
    """
    results = current_results(exp.rglob("result*.json"), OneClassResult)
    chosen = (one for one in results if not training_seeds or one.cfg.manual_seed in training_seeds)
    return [Run(result, metrics) for result in chosen for metrics in result.results]


def identity(cfg: Config, method: str, more: Sequence[str] = ()) -> tuple[Any, ...]:
    """What makes two tests the same row and column of a table."""
    method, fusion = ("HMNet", "concat") if method == "concat" else (method, cfg.fusion_name)  # the same network
    components = tuple(getattr(cfg, key) for key in COMPONENTS) if fusion == "hmnet" else ()
    return (method, fusion, components, *(getattr(cfg, key) for key in (*IDENTITY, *more)))


def differences(cfg: Config, wanted: Config, keys: Sequence[str] = SETTINGS) -> tuple[str, ...]:
    """The settings in which a run differs from what is wanted."""
    pairs = [(key, getattr(cfg, key), getattr(wanted, key)) for key in keys]
    return tuple(f"{key} {value} instead of {other}" for key, value, other in pairs if value != other)

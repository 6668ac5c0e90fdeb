"""A comparison of methods from nothing: `python -m tools.study config/study/study.yaml`.

Trains and tests every method on every fold of every set, first once each, then again with other seeds, and prints a
table for each set; study.md, study.csv and study.svg hold the same. What is done is not done again, so the command goes
on where it was stopped.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from engine.identity import method_name, result_name
from model.build import build_model
from model.methods import find_method
from tools.demo import step
from tools.paper.paired import Tests, comparison_table, leads, read_tests
from tools.paper.plots import draw_leads, save_svg
from tools.paper.table import Table, csv_text
from tools.search import is_done
from util.arguments import Parser
from util.config import load_config, parse_yaml
from util.errors import UserError, run_main
from util.files import atomic_write, read_text

CHANGED = ("other class", "other class hard", "emptied", "emptied hard")  # points, by wrong supports
# Of study.csv; `ahead` is the first method of each, in points, with an interval
COLUMNS = ("set", "method", "trainings", "mIoU", "ahead", "hard mIoU", "hard ahead", *CHANGED)


class StudyMethod(BaseModel):
    """How often a method is trained, and the keys of the config that make it."""

    model_config = ConfigDict(extra="allow")
    trainings: Annotated[int, Field(ge=0)] = 1  # 0: training-free, tested once


class Study(BaseModel):
    """A file of a study: where its runs lie, configs by set (one a fold), methods by name."""

    model_config = ConfigDict(extra="forbid")
    exp: str
    sets: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    methods: Annotated[dict[str, StudyMethod], Field(min_length=1)]

    def folder(self, set_name: str, method: str) -> Path:
        """Of all runs of a method on a set."""
        return Path(self.exp, *("".join(c if c.isalnum() else "_" for c in name) for name in (set_name, method)))


class Job(NamedTuple):
    """One training with its test, or a test alone."""

    of: tuple[str, str]  # set and method
    title: str
    trains: bool
    config: str
    opts: list[str]


def read_study(path: Path) -> Study:
    """UserError where the file is missing or is no study."""
    tree = parse_yaml(read_text(path, "study"), str(path))
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc'])) or 'study'}: {first['msg']}") from None


def jobs(study: Study, folder: Path) -> Iterator[Job]:
    """All of them: every method once on the first folds, then on the others, then with other seeds."""
    seeds = range(max(1, *(method.trainings for method in study.methods.values())))
    folds = range(max(map(len, study.sets.values())))
    for seed, fold, (name, method), (set_name, configs) in product(
        seeds, folds, study.methods.items(), study.sets.items()
    ):
        if seed < max(1, method.trainings) and fold < len(configs):
            exp = study.folder(set_name, name) / f"seed{seed}"
            keys = {**(method.model_extra or {}), "manual_seed": seed, "exp": exp}
            words = [word for key, value in keys.items() for word in (key, str(value))]
            title = f"{name}, {configs[fold]}, seed {seed}"
            yield Job((set_name, name), title, method.trainings > 0, str(folder / configs[fold]), words)


def is_left(job: Job) -> bool:
    """Whether its result is not there yet; UserError for a config or keys that are wrong, and as `is_done`."""
    cfg = load_config(job.config, job.opts)
    weights = cfg.best_weights(cfg.shot) if job.trains else None
    name = result_name(cfg, method_name(cfg), job.config, weights)
    return not is_done(cfg, cfg.experiment_dir / f"result_{name}.json")


def check(jobs: Iterable[Job]) -> None:
    """UserError where the network of a method cannot be built on a set, as far as that shows without weights."""
    for job in {job.of: job for job in jobs}.values():
        try:
            build_model(load_config(job.config, job.opts), pretrained=False)
        except UserError as error:
            raise UserError(f"{job.title}: {error}") from None


def run(job: Job) -> None:
    """Train where the method is trained, its base learner first where it has one that is not there, and test."""
    cfg = load_config(job.config, job.opts)
    if find_method(cfg.arch).has_base_learner(cfg) and not cfg.base_learner_path.is_file():
        step(f"{job.title}: base learner", "train_base.py", "--opts", *job.opts, "resume", "auto", config=job.config)
    if job.trains:
        step(job.title, "train.py", "--opts", *job.opts, "resume", "auto", config=job.config)
    step(f"{job.title}: test", "test.py", "--support-check", "--opts", *job.opts, config=job.config)


def tested(study: Study, folder: Path) -> dict[str, dict[str, Tests]]:
    """By set and method the tests that are there, of methods that are tested on all folds that the first one is."""
    found = {}
    for set_name, configs in study.sets.items():
        settings = [load_config(folder / config) for config in configs]
        splits = {cfg.split for cfg in settings}
        pattern = f"**/result_test_{settings[0].shot}shot*.json"  # others may lie beside
        tests: dict[str, Tests] = {}
        for name in study.methods:
            path = study.folder(set_name, name)
            there = read_tests(path / pattern) if any(path.glob(pattern)) else {}
            if asked := {part: trainings for part, trainings in there.items() if part[1] in splits}:
                tests[name] = asked
        folds = next(iter(tests.values()), {}).keys()
        whole = {name: of_method for name, of_method in tests.items() if folds <= of_method.keys()}
        if len(whole) > 1:
            found[set_name] = whole
    return found


def tables(study: Study, tests: Mapping[str, Mapping[str, Tests]]) -> list[Table]:
    """The methods of each set side by side; a note names those that are not tested on all folds of the first yet."""
    found = [comparison_table(set_name, whole) for set_name, whole in tests.items()]
    for table, whole in zip(found, tests.values(), strict=True):
        if left := [name for name in study.methods if name not in whole]:
            table.notes.append(f"Not on all of these folds yet: {', '.join(left)}.")
    return found


def main() -> None:
    """Run what is left, then print the tables."""
    parser = Parser(prog="python -m tools.study", description="Compare methods on the same episodes.")
    parser.add_argument("study", type=Path, metavar="FILE", help="such as config/study/study.yaml")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="these only; default: all of the file")
    parser.add_argument("--folds", type=int, metavar="N", help="the first N of each set only")
    parser.add_argument("--table", action="store_true", help="show what is there, and run nothing")
    arguments: Any = parser.parse_args()
    study = read_study(arguments.study)
    if arguments.folds is not None and arguments.folds < 1:
        raise UserError(f"--folds {arguments.folds}: should be at least 1")
    if unknown := {*(arguments.methods or ())} - study.methods.keys():
        raise UserError(f"--methods {min(unknown)}: not in {arguments.study}, which has {', '.join(study.methods)}")
    if arguments.methods:
        study.methods = {name: study.methods[name] for name in arguments.methods}
    study.sets = {name: configs[: arguments.folds] for name, configs in study.sets.items()}
    if not arguments.table:
        left = [job for job in jobs(study, arguments.study.parent) if is_left(job)]
        check(left)  # all mistakes come before the work
        for job in tqdm(left, "study", unit="run"):
            run(job)
    tests = tested(study, arguments.study.parent)
    found = tables(study, tests)
    print(text := "\n".join(table.markdown() for table in found))
    if tests:
        atomic_write(Path(study.exp) / "study.md", text)
        rows = [(table.title, *row) for table in found for row in table.rows]
        atomic_write(Path(study.exp) / "study.csv", csv_text(COLUMNS, rows))
        first = next(iter(next(iter(tests.values()))))
        ahead = {set_name: leads(whole) for set_name, whole in tests.items()}
        save_svg(Path(study.exp) / "study.svg", lambda: draw_leads(ahead, first))


if __name__ == "__main__":
    run_main(main)

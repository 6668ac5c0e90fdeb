"""The paper's Tables 1 to 9, whose rows stand in paper.yaml, filled with the runs that there are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.published import BASE_MIOU
from engine.results import TrainingResult, read_result
from tools.paper.published import published
from tools.paper.runs import PORT, Run, RunSpec, differences
from util.config import load_config
from util.errors import UserError

TABLES = range(10)  # 0: base learners
STATISTICS: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "std": stdev}
HMNET = "manet"  # what the configs of the paper's own network are called
MEANS = {"miou": 100, "fb_iou": 100, "seconds": 1}  # what is averaged over folds, in per cent but for seconds
EPISODES_9 = 4000  # of Table 9


class Cell(NamedTuple):
    """One metric: this project's, its standard deviation over training seeds, and the paper's."""

    own: float | None = None
    spread: float | None = None
    paper: float | None = None

    @property
    def difference(self) -> float | None:
        """Own minus the paper's."""
        return None if self.own is None or self.paper is None else self.own - self.paper

    def text(self) -> str:
        """For people: own (± deviation) / published / difference."""
        own = "-" if self.own is None else f"{self.own:.1f}"
        own += "" if self.spread is None else f" ± {self.spread:.1f}"
        if self.paper is None:
            return own
        return f"{own} / {self.paper:.1f}" + ("" if self.difference is None else f" / {self.difference:+.1f}")


@dataclass
class Sheet:
    """A table filled as far as there are runs, and the commands for what is missing."""

    title: str
    columns: Sequence[str]
    rows: dict[str, list[Cell]] = field(default_factory=dict)  # by name, a cell per column
    missing: dict[str, None] = field(default_factory=dict)  # commands, each once
    notes: list[str] = field(default_factory=list)
    runs: dict[str, dict[int, list[Run]]] = field(default_factory=dict)  # by row and fold, one of each training seed

    def add(self, name: str, own: Sequence[Cell], paper: Sequence[float | None]) -> None:
        """Add a row; what there is too much of either is left out."""
        pairs = zip_longest(own, paper)
        cells = [(cell or Cell())._replace(paper=value) for cell, value in pairs]
        self.rows[name] = [*cells, *[Cell()] * len(self.columns)][: len(self.columns)]


class Sources(NamedTuple):
    """What there is to report on."""

    runs: Sequence[Run]
    benchmark: Mapping[str, Any] | None = None
    config: str | None = None  # for Tables 3 to 8 on other data than the paper's
    splits: Sequence[int] = ()  # the folds to report on; none: all
    training_seeds: Sequence[int] = ()  # that every run should have been trained with; none: any one
    exp: Path = Path("exp")  # folder of the runs

    @property
    def folds(self) -> Sequence[int]:
        """The folds to report on. Raises UserError for one that the data does not have."""
        count = load_config(self.config).folds if self.config else 4
        if wrong := [split for split in self.splits if not 0 <= split < count]:
            raise UserError(f"--splits {wrong[0]}: {self.config or 'the paper'} has folds 0 to {count - 1}")
        return self.splits or range(count)

    def beside(self, paper: Sequence[float | None]) -> list[float | None]:
        """Published metrics of a row of folds, mean, FB-IoU and more; folds' belong to the paper's data only."""
        folds = [None if self.config else paper[split] for split in self.folds]
        means = paper[4:6] if self.config or len(folds) == 4 else [None, None]
        return [*folds, *means, *paper[6:]]

    def run_spec(self, config: str, split: int, own: Mapping[str, Any]) -> RunSpec:
        """The run of a row's fold; `own` as paper.yaml has it."""
        more = {key: value for key, value in own.items() if key not in ("net", "shot", "method", "network")}
        network = own.get("network", {})
        if self.config:
            return RunSpec(self.config, {"split": split, **network}, **more)
        shots = "" if own.get("shot", 1) == 1 else f"_{own['shot']}s"
        names = {"net": own.get("net", "resnet50"), "method": own.get("method", HMNET), "shots": shots}
        return RunSpec(config.format(split=split, **names), network, **more)


def fill(number: int, sources: Sources) -> Sheet:
    """A table beside what was published; Tables 1 and 2 are of the paper's data alone."""
    if number == 0:
        return base_learners(sources)
    table = published("tables")[number]
    sources = sources._replace(config=None) if "later" in table else sources
    by_fold = "folds" in table["columns"]
    folds = [f"fold {split}" for split in sources.folds]
    sheet = Sheet(
        table["title"], [part for name in table["columns"] for part in (folds if name == "folds" else [name])]
    )
    tested: list[Sequence[Cell]] = []
    measured = (sources.benchmark or {}).get(table.get("benchmark"), [])
    for row in table["rows"]:
        cells: Sequence[Cell] = ()
        if "own" in row:
            cells = fold_cells(find_folds(sheet, row["name"], sources, table["config"], row["own"]))
            tested.append(cells)
            cells = cells if by_fold else [cells[-3]]  # the mean over folds
        elif "over" in row:
            cells = over_rows(tested, row["over"])
        if "measured" in row:
            cells = [*cells, *measured_cells(measured, row["measured"], sheet.columns)]
        sheet.add(row["name"], cells, sources.beside(row["paper"]) if by_fold else row["paper"])
    add_notes(sheet, table, measured)
    return sheet


def add_notes(sheet: Sheet, table: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> None:
    """What is to be said below a table, and the command for its measurements where they are missing."""
    if "benchmark" in table and not measured:
        sheet.missing[f"python -m tools.benchmark --rows {table['benchmark']}"] = None
    if "grids" in table and measured:
        sides = ", ".join(dict.fromkeys(f"{row['feature_size']} at {row['val_size']}" for row in measured))
        sheet.notes.append(f"Own feature sizes: {sides}; the paper's: {', '.join(map(str, table['grids']))}.")
    sheet.notes += table.get("notes", [])
    if "later" in table:
        later = published("later")[table["later"]].items()
        references = (f"{name} {' / '.join(map(str, shots.values()))}" for name, shots in later)
        sheet.notes.append(f"Later, with foundation backbones, mIoU of 1 shot (/ 5 shots): {', '.join(references)}.")


def find_folds(sheet: Sheet, name: str, sources: Sources, config: str, own: Mapping[str, Any]) -> list[list[Run]]:
    """The runs of every fold; the sheet notes what is missing or differs."""
    folds = sheet.runs[name] = {}
    for split in sources.folds:
        spec = sources.run_spec(config, split, own)
        folds[split] = found = spec.find(sources.runs)
        for seed in sources.training_seeds or (None,):
            runs = [run for run in sources.runs if seed in (None, run.result.cfg.manual_seed)]
            if "method" not in own and not spec.find(runs):  # nobody wants to train all methods for a table
                sheet.missing |= dict.fromkeys(spec.trained_with(seed).commands())
        if found and (other := differences(found[0].result.cfg, spec.cfg)):
            sheet.notes.append(f"{name}, fold {split}: {', '.join(other)}")
    if sources.config:
        data = f"{spec.cfg.data_set}, {spec.cfg.backbone_name}, {sources.config}"
        note = f"This project's metrics are of {data}: not of the same data."
        sheet.notes += [note] if note not in sheet.notes else []
    return [*folds.values()]


def average(runs: Sequence[Run], key: str, times: float = 100) -> float:
    """A metric's mean over runs, in per cent unless `times` is given."""
    return fmean(times * getattr(run.metrics, key) for run in runs)


def fold_cells(found: Sequence[Sequence[Run]]) -> list[Cell]:
    """The mIoU of every fold, then means of mIoU, FB-IoU and seconds; none of them over only some of the folds."""
    cells = []
    for runs in found:
        mious = [100 * run.metrics.miou for run in runs]
        cells.append(Cell(fmean(mious) if runs else None, stdev(mious) if len(runs) > 1 else None))
    if not all(found):
        return [*cells, *[Cell()] * 3]
    means = [fmean(average(runs, key, times) for runs in found) for key, times in MEANS.items()]
    return [*cells, *map(Cell, means)]


def over_rows(rows: Sequence[Sequence[Cell]], statistic: str) -> list[Cell]:
    """A statistic of every column; empty where a row has no metric."""
    columns = [[cell.own for cell in column if cell.own is not None] for column in zip(*rows, strict=True)]
    return [Cell(STATISTICS[statistic](column)) if len(column) == len(rows) else Cell() for column in columns]


def measured_cells(rows: Sequence[Mapping[str, Any]], key: Any, columns: Sequence[str]) -> list[Cell]:
    """What the benchmark measured with so many blocks, or of a way of fusing by image size."""
    if "GFLOP" in columns:
        row = next((row for row in rows if row.get("blocks") == key), {})
        speed = 1 / row["cold s"] if "cold s" in row else None
        return [Cell(row.get("parameters M")), Cell(row.get("GFLOP")), Cell(speed)]
    cold = {str(row["size"]): row["cold s"] for row in rows if row.get("fusion") == key and "cold s" in row}
    return [Cell(EPISODES_9 * cold[size] if size in cold else None) for size in columns]


def base_learners(sources: Sources) -> Sheet:
    """Stage 1, whose metrics BAM's author published."""
    folds = sources._replace(config=None).folds
    sheet = Sheet("Stage 1: base learners, mIoU of the base classes", [f"fold {i}" for i in folds])
    for (data, net), paper in BASE_MIOU.items():
        own = []
        for split in folds:
            cfg = load_config(published(data).format(split=split, net=net, method=HMNET, shots=""))
            path = sources.exp / data / "PSPNet" / f"split{split}" / net / "result.json"
            miou = read_result(path, TrainingResult).miou if path.is_file() else None
            own.append(Cell(None if miou is None else 100 * miou))
            if miou is None and not cfg.base_learner_path.is_file():
                sheet.missing[f"sh train_base.sh {PORT} {data} {split} {net} --opts resume auto"] = None
        sheet.add(f"{data}, {net}", own, [paper[i] for i in folds])
    sheet.notes.append("Published by BAM's author. Own validation resizes to squares, theirs keeps the aspect ratio.")
    return sheet

"""The paper's Tables 1 to 9, whose rows stand in paper.yaml, filled with the runs that there are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.published import BASE_MIOU
from engine.results import TrainingResult, read_result
from tools.paper.published import published
from tools.paper.runs import PORT, Averages, Measured, RunSpec
from util.config import load_config
from util.errors import UserError

TABLES = range(10)  # 0: base learners
STATISTICS: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "std": stdev}
HMNET = "manet"  # what the configs of the paper's own network are called
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


class Row(NamedTuple):
    """A named row of cells."""

    name: str
    cells: Sequence[Cell]


@dataclass
class Sheet:
    """A table filled as far as there are runs, and the commands for what is missing."""

    title: str
    columns: Sequence[str]
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: dict[str, dict[int, Averages | None]] = field(default_factory=dict)  # by row and fold

    def add(self, name: str, own: Sequence[Cell], paper: Sequence[float | None]) -> None:
        """Add a row of one cell per column."""
        cells = [*own, *[Cell()] * len(self.columns)]
        pairs = zip(self.columns, cells, paper, strict=False)
        self.rows.append(Row(name, [cell._replace(paper=value) for _, cell, value in pairs]))

    def add_missing(self, commands: Sequence[str]) -> None:
        """Note commands that would make what is missing, each once."""
        self.missing += [command for command in commands if command not in self.missing]


class Sources(NamedTuple):
    """What there is to report on."""

    runs: Sequence[Measured]
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
        folds, means = [*paper[:4]], [*paper[4:6], None, None][:2]
        if self.config:
            return [*[None] * len(self.folds), *means, *paper[6:]]
        return [*(folds[i] for i in self.folds), *(means if len(self.folds) == 4 else [None, None]), *paper[6:]]

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
    folds = [f"fold {split}" for split in sources.folds]
    columns = [part for name in table["columns"] for part in (folds if name == "folds" else [name])]
    sheet = Sheet(table["title"], columns)
    tested: list[Sequence[Cell]] = []
    measured = (sources.benchmark or {}).get(table.get("benchmark"), [])
    for row in table["rows"]:
        cells: Sequence[Cell] = ()
        if "own" in row:
            found = find_folds(sheet, row["name"], sources, table["config"], row["own"])
            cells = fold_cells(found)
            tested.append(cells)
            if "folds" not in table["columns"]:
                cells = [cells[-3]]  # the mean over folds
        elif "over" in row:
            cells = over_rows(tested, STATISTICS[row["over"]])
        if "measured" in row:
            cells = [*cells, *measured_cells(measured, row["measured"], columns)]
        sheet.add(row["name"], cells, sources.beside(row["paper"]) if "folds" in table["columns"] else row["paper"])
    if "benchmark" in table and not measured:
        sheet.add_missing([f"python -m tools.benchmark --rows {table['benchmark']}"])
    if "grids" in table and measured:
        sides = ", ".join(dict.fromkeys(f"{row['feature_size']} at {row['val_size']}" for row in measured))
        sheet.notes.append(f"Own feature sizes: {sides}; the paper's: {', '.join(map(str, table['grids']))}.")
    sheet.notes += table.get("notes", [])
    if "later" in table:
        later = published("later")[table["later"]].items()
        references = (f"{name} {' / '.join(map(str, shots.values()))}" for name, shots in later)
        sheet.notes.append(f"Later, with foundation backbones, mIoU of 1 shot (/ 5 shots): {', '.join(references)}.")
    return sheet


def find_folds(sheet: Sheet, name: str, sources: Sources, config: str, own: Mapping[str, Any]) -> list[Averages | None]:
    """The averages of every fold; the sheet notes what is missing or differs."""
    found: list[Averages | None] = []
    for split in sources.folds:
        spec, seeds = sources.run_spec(config, split, own), sources.training_seeds
        for run in [spec.trained_with(seed) for seed in seeds] or [spec]:
            if run.find(sources.runs) is None and "method" not in own:  # nobody wants to train all methods for a table
                sheet.add_missing(run.commands())
        averages = spec.find([run for run in sources.runs if not seeds or run.result.cfg.manual_seed in seeds])
        found.append(averages)
        if averages and averages.differences:
            sheet.notes.append(f"{name}, fold {split}: {', '.join(averages.differences)}")
    if sources.config:
        cfg = spec.cfg
        data = f"{cfg.data_set}, {cfg.backbone_name}, {sources.config}"
        note = f"This project's metrics are of {data}: not of the same data."
        sheet.notes += [note] if note not in sheet.notes else []
    sheet.runs[name] = dict(zip(sources.folds, found, strict=True))
    return found


def fold_cells(found: Sequence[Averages | None]) -> list[Cell]:
    """The mIoU of every fold, then means of mIoU, FB-IoU and seconds; none of them over only some of the folds."""
    known = [averages for averages in found if averages]
    cells = [Cell(averages.miou, averages.miou_spread) if averages else Cell() for averages in found]
    if len(known) < len(found):
        return [*cells, *[Cell()] * 3]
    means = [fmean(getattr(averages, key) for averages in known) for key in ("miou", "fb_iou", "seconds")]
    return [*cells, *map(Cell, means)]


def over_rows(rows: Sequence[Sequence[Cell]], statistic: Callable[[list[float]], float]) -> list[Cell]:
    """A statistic of every column; empty where a row has no metric."""
    columns = [[cell.own for cell in column if cell.own is not None] for column in zip(*rows, strict=True)]
    return [Cell(statistic(column)) if len(column) == len(rows) else Cell() for column in columns]


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
                sheet.add_missing([f"sh train_base.sh {PORT} {data} {split} {net} --opts resume auto"])
        sheet.add(f"{data}, {net}", own, [paper[i] for i in folds])
    sheet.notes.append("Published by BAM's author. Own validation resizes to squares, theirs keeps the aspect ratio.")
    return sheet

"""The paper's Tables 1 to 9: which run belongs into which cell, beside what was published."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.published import BASE_MIOU
from tools.paper.published import published
from tools.paper.runs import PORT, Figures, Measured, RunSpec, read_json
from util.config import load_config
from util.errors import UserError

PASCAL = "config/pascal/pascal_split{split}_{net}_manet{shots}.yaml"
COCO = "config/coco/coco_split{split}_{net}_manet{shots}.yaml"
TABLE_8 = {  # rows of paper.yaml to this project's fusion
    "concat (BAM)": "concat",
    "cross attention (CyCTR)": "cross_attention",
    "cross attention (SCCAN)": "self_calibrated",
    "HMNet": "hmnet",
}
BENCHMARK = "python -m tools.benchmark --rows {}"
WITHOUT_BAM = {"ensemble": False, "dilate_first": False}  # the variant of these rows was built on SCCAN's backbone
EPISODES_9 = 4000
GRIDS_9 = (60, 80, 100, 120, 140)  # feature sizes that the paper names; its code has 64 at 473 px
OTHER_MACHINE = "Seconds and frames per second are this machine's; the paper's are those of one V100."


class Cell(NamedTuple):
    """One figure: this project's, its standard deviation over training seeds, and the paper's."""

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
    runs: dict[str, dict[int, Figures | None]] = field(default_factory=dict)  # by row and fold

    def add(self, name: str, own: Sequence[Cell], paper: Sequence[float | None]) -> None:
        """Add a row of one cell per column."""
        pairs = zip(own, paper, strict=True)
        self.rows.append(Row(name, [cell._replace(paper=value) for cell, value in pairs][: len(self.columns)]))

    def lack(self, commands: Sequence[str]) -> None:
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

    def columns(self, *more: str) -> tuple[str, ...]:
        """The folds, their mean, and more."""
        return (*(f"fold {i}" for i in self.folds), "mean", *more)

    def beside(self, paper: Sequence[float | None]) -> list[float | None]:
        """Published figures of a row of folds, mean, FB-IoU; those of folds belong to the paper's data only."""
        means = [*paper[4:6], *[None] * (6 - len(paper[:6]))]
        if self.config:
            return [*[None] * len(self.folds), *means]
        return [*(paper[i] for i in self.folds), *(means if len(self.folds) == 4 else [None, None])]

    def want(
        self, split: int, pattern: str, net: str = "resnet50", shot: int = 1, network: Any = None, **test: Any
    ) -> RunSpec:
        """The run of a fold."""
        if self.config:
            return RunSpec(self.config, {"split": split, **(network or {})}, **test)
        config = pattern.format(split=split, net=net, shots="" if shot == 1 else f"_{shot}s")
        return RunSpec(config, network or {}, **test)

    def folds_of(self, sheet: Sheet, name: str, want: Callable[[int], RunSpec]) -> list[Figures | None]:
        """The figures of every fold; the sheet notes what is missing or differs."""
        found: list[Figures | None] = []
        for split in self.folds:
            seeded = [want(split).trained_with(seed) for seed in self.training_seeds] or [want(split)]
            for run in seeded:
                if run.find(self.runs) is None:
                    sheet.lack(run.commands())
            seeds = set(self.training_seeds)
            figures = want(split).find([run for run in self.runs if not seeds or run.cfg.manual_seed in seeds])
            found.append(figures)
            if figures and figures.differences:
                sheet.notes.append(f"{name}, fold {split}: {', '.join(figures.differences)}")
        if self.config:
            cfg = want(self.folds[0]).cfg
            data = f"{cfg.data_set}, {cfg.backbone_name}, {self.config}"
            note = f"This project's figures are of {data}: not of the same data."
            sheet.notes += [note] if note not in sheet.notes else []
        sheet.runs[name] = dict(zip(self.folds, found, strict=True))
        return found


def fold_cells(found: Sequence[Figures | None]) -> list[Cell]:
    """The mIoU of every fold, its mean and the mean FB-IoU; no mean over only some of the folds."""
    figures = [figure for figure in found if figure]
    cells = [Cell(figure.miou, figure.miou_spread) if figure else Cell() for figure in found]
    if len(figures) < len(found):
        return [*cells, Cell(), Cell()]
    return [*cells, Cell(fmean(figure.miou for figure in figures)), Cell(fmean(figure.fb_iou for figure in figures))]


def over_rows(rows: Sequence[Sequence[Cell]], statistic: Callable[[list[float]], float]) -> list[Cell]:
    """A statistic of every column; empty where a row has no figure."""
    columns = [[cell.own for cell in column if cell.own is not None] for column in zip(*rows, strict=True)]
    return [Cell(statistic(column)) if len(column) == len(rows) else Cell() for column in columns]


def _comparison(sources: Sources, title: str, key: str, later: str, pattern: str) -> Sheet:
    """Tables 1 and 2: other methods as published, HMNet beside its own numbers."""
    sources = sources._replace(config=None)
    sheet = Sheet(title, sources.columns("FB-IoU"))
    for net, methods in published(key).items():
        for shot in (1, 5):
            for method, shots in methods.items():
                name = f"{net}, {shot} shot, {method}"
                own = [Cell()] * (len(sources.folds) + 2)
                if method == "HMNet":
                    own = fold_cells(
                        sources.folds_of(sheet, name, lambda i, n=net, s=shot: sources.want(i, pattern, n, s))  # type: ignore[misc]
                    )
                sheet.add(name, own, sources.beside(shots[shot]))
    references = (f"{name} {' / '.join(map(str, shots.values()))}" for name, shots in published("later")[later].items())
    sheet.notes.append(f"Later, with foundation backbones, mIoU of 1 shot (/ 5 shots): {', '.join(references)}.")
    return sheet


def base_learners(sources: Sources) -> Sheet:
    """Stage 1, whose figures BAM's author published."""
    folds = sources._replace(config=None).folds
    sheet = Sheet("Stage 1: base learners, mIoU of the base classes", [f"fold {i}" for i in folds])
    for (data, net), paper in BASE_MIOU.items():
        own = []
        for split in folds:
            cfg = load_config((PASCAL if data == "pascal" else COCO).format(split=split, net=net, shots=""))
            result = sources.exp / data / "PSPNet" / f"split{split}" / net / "result.json"
            miou = read_json(result).get("miou") if result.is_file() else None
            own.append(Cell(None if miou is None else 100 * miou))
            if miou is None and not cfg.base_learner_path.is_file():
                sheet.lack([f"sh train_base.sh {PORT} {data} {split} {net} --opts resume auto"])
        sheet.add(f"{data}, {net}", own, [paper[i] for i in folds])
    sheet.notes.append("Published by BAM's author. Own validation resizes to squares, theirs keeps the aspect ratio.")
    return sheet


def table_1(sources: Sources) -> Sheet:
    """PASCAL-5i."""
    return _comparison(sources, "Table 1: PASCAL-5i", "table1_pascal", "pascal", PASCAL)


def table_2(sources: Sources) -> Sheet:
    """COCO-20i."""
    return _comparison(sources, "Table 2: COCO-20i", "table2_coco", "coco", COCO)


def table_3(sources: Sources) -> Sheet:
    """Components."""
    sheet = Sheet("Table 3: components, PASCAL-5i, ResNet-50, 1 shot", sources.columns())
    for row in published("table3_components"):
        network: dict[str, Any] = {} if row["bam"] else dict(WITHOUT_BAM)
        if not row["self"]:
            network["fusion"] = "concat"
        else:
            network |= {key: row[key] for key, full in (("srm", "recap"), ("qim", "share")) if row[key] != full}
        if row["srm"] == "none" != row["qim"]:
            network["qim_state_grad"] = True
        parts = f"self {'yes' if row['self'] else 'no'}", f"SRM {row['srm']}", f"QIM {row['qim']}"
        name = ", ".join([*parts, f"ensemble {'yes' if row['bam'] else 'no'}"])
        found = sources.folds_of(sheet, name, lambda i, n=network: sources.want(i, PASCAL, network=n))  # type: ignore[misc]
        sheet.add(name, fold_cells(found), sources.beside(row["miou"]))
    sheet.notes.append("QIM without SRM has qim_state_grad true: nothing else would give the support a gradient.")
    return sheet


def table_4(sources: Sources) -> Sheet:
    """Number of blocks."""
    sheet = Sheet("Table 4: number of blocks, without the ensemble", ("mIoU", "parameters M", "GFLOP", "frames/s"))
    measured = {row.get("blocks"): row for row in (sources.benchmark or {}).get("blocks", ())}
    for blocks, paper in published("table4_blocks").items():
        network = {**WITHOUT_BAM, **({} if blocks == 8 else {"blocks": blocks})}
        found = sources.folds_of(sheet, str(blocks), lambda i, n=network: sources.want(i, PASCAL, network=n))  # type: ignore[misc]
        row = measured.get(blocks, {})
        counts = row.get("parameters M"), row.get("GFLOP"), 1 / row["cold s"] if "cold s" in row else None
        sheet.add(str(blocks), [fold_cells(found)[-2], *(Cell(count) for count in counts)], paper)
    if not measured:
        sheet.lack([BENCHMARK.format("blocks")])
    sheet.notes += ["What the paper's counts leave out: docs/paper.md, Speed.", OTHER_MACHINE]
    return sheet


def table_5(sources: Sources) -> Sheet:
    """Weak labels."""
    sheet = Sheet(
        "Table 5: supports annotated by masks or boxes, PASCAL-5i, ResNet-50, 1 shot", sources.columns("FB-IoU")
    )
    for kind, paper in published("table5_weak_labels").items():
        testing = {} if kind == "mask" else {"ann_type": kind}
        found = sources.folds_of(sheet, kind, lambda i, t=testing: sources.want(i, PASCAL, testing=t))  # type: ignore[misc]
        sheet.add(kind, fold_cells(found), sources.beside(paper))
    return sheet


def table_6(sources: Sources) -> Sheet:
    """Seeds of the test episodes."""
    methods = published("table6_seeds")
    sheet = Sheet("Table 6: seeds of the test episodes, COCO-20i, ResNet-50, 1 shot", sources.columns("FB-IoU"))
    seeds = [seed for seed in methods["HMNet"] if isinstance(seed, int)]
    test: dict[str, Any] = {"testing": {"seeds": seeds}, "result": "result_test_1shot_seeds.json"}
    own = {}
    for seed in seeds:
        name = f"HMNet, seed {seed}"
        found = sources.folds_of(sheet, name, lambda i, s=seed: sources.want(i, COCO, seed=s, **test))  # type: ignore[misc]
        own[seed] = fold_cells(found)
    summary = {name: over_rows(list(own.values()), function) for name, function in (("mean", fmean), ("std", stdev))}
    _add_methods(sheet, sources, methods, {**own, **summary}, "seed ")
    return sheet


def table_7(sources: Sources) -> Sheet:
    """Number of test episodes."""
    methods = published("table7_episodes")
    columns = sources.columns("FB-IoU", "seconds of a fold")
    sheet = Sheet("Table 7: number of test episodes, COCO-20i, ResNet-50, 1 shot", columns, notes=[OTHER_MACHINE])
    own = {}
    for episodes in [key for key in methods["HMNet"] if isinstance(key, int)]:
        test: dict[str, Any] = {"testing": {"test_episodes": episodes}, "identity": ("test_episodes",)}
        test["result"] = f"result_test_1shot_{episodes}.json"
        name = f"HMNet, {episodes}"
        found = sources.folds_of(sheet, name, lambda i, t=test: sources.want(i, COCO, **t))  # type: ignore[misc]
        seconds = [figure.seconds for figure in found if figure]
        own[episodes] = [*fold_cells(found), Cell(fmean(seconds)) if len(seconds) == len(found) else Cell()]
    _add_methods(sheet, sources, methods, {**own, "mean": over_rows(list(own.values()), fmean)})
    return sheet


def _add_methods(
    sheet: Sheet, sources: Sources, methods: Any, own: Mapping[Any, Sequence[Cell]], what: str = ""
) -> None:
    """The rows of every method, `own` beside HMNet's."""
    for method, rows in methods.items():
        for key, paper in rows.items():
            cells = own[key] if method == "HMNet" else [Cell()] * len(own[key])
            name = f"{method}, {what if isinstance(key, int) else ''}{key}"
            sheet.add(name, cells, [*sources.beside(paper), *paper[6:]])


def table_8(sources: Sources) -> Sheet:
    """Ways of fusing query and support."""
    sheet = Sheet("Table 8: fusion, PASCAL-5i, ResNet-50, 1 shot, without the ensemble", sources.columns())
    for name, paper in published("table8_fusion").items():
        if name not in TABLE_8:
            sheet.add(name, fold_cells([None] * len(sources.folds)), sources.beside(paper))
            continue
        fusion = TABLE_8[name]
        network = {**WITHOUT_BAM, **({} if fusion == "hmnet" else {"fusion": fusion})}
        found = sources.folds_of(sheet, name, lambda i, n=network: sources.want(i, PASCAL, network=n))  # type: ignore[misc]
        sheet.add(name, fold_cells(found), sources.beside(paper))
    sheet.notes.append("The paper prints 68.8 as HMNet's mean; its folds average 68.6, which is what Table 3 prints.")
    sheet.notes.append("Own rows but HMNet are that way of fusing in HMNet's surroundings, not the cited networks.")
    return sheet


def table_9(sources: Sources) -> Sheet:
    """Image sizes."""
    rows = published("table9_image_size")
    sizes = list(rows["HMNet"])
    sheet = Sheet(f"Table 9: seconds for {EPISODES_9} episodes by image size", [f"{size}" for size in sizes])
    measured = (sources.benchmark or {}).get("sizes", [])
    for name, fusion in (("HDMNet", None), ("HMNet", "hmnet"), ("cross attention", "cross_attention")):
        points = {row["size"]: row for row in measured if row.get("fusion") == fusion and "size" in row}
        cold = [points.get(size, {}).get("cold s") for size in sizes]
        own = [Cell(None if seconds is None else EPISODES_9 * seconds) for seconds in cold]
        sheet.add(name, own, [rows.get(name, {}).get(size) for size in sizes])
    if measured:
        sides = ", ".join(dict.fromkeys(f"{row['feature_size']} at {row['val_size']}" for row in measured))
        sheet.notes.append(f"Own feature sizes: {sides}; the paper's: {', '.join(map(str, GRIDS_9))}.")
    if not measured:
        sheet.lack([BENCHMARK.format("sizes")])
    sheet.notes += ["Own: cold episodes of the benchmark, not cached, times 4000.", OTHER_MACHINE]
    return sheet


TABLES = {0: base_learners, 1: table_1, 2: table_2, 3: table_3, 4: table_4, 5: table_5}
TABLES |= {6: table_6, 7: table_7, 8: table_8, 9: table_9}

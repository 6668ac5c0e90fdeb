"""One table over all benchmarks that a folder of results holds, with published metrics of the same protocol."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import yaml

from engine.results import AnyTest, OneClassResult, SeveralClassesResult, current_results
from tools.paper.published import published
from tools.paper.table import Table

REFERENCES = Path(__file__).with_name("benchmarks.yaml")
COLUMNS = (
    *("benchmark", "shots", "protocol", "query images", "training list", "size", "scored at", "network", "folds"),
    *("mIoU", "published, same protocol", "published, other protocol: not comparable"),
)
PAPER_TABLES = {1: ("pascal", 473), 2: ("coco", 633)}  # data set and HMNet's input size of two tables of paper.yaml
GENERALIZED = {"mIoU-N": "miou_novel", "mIoU-B": "miou_base", "mIoU-A": "miou_all"}


class Reference(NamedTuple):
    """A published mIoU."""

    set: str
    shot: int
    protocol: str
    method: str
    mean: float | None = None
    folds: Sequence[float] = ()  # all of them, where they are known
    variant: str = ""
    size: int | None = None

    def tested_by(self) -> str:
        """The protocol as results name it: BAM's generalized figure is of novel classes."""
        return "generalized mIoU-N" if self.protocol == "generalized" else self.protocol

    def text(self, folds: Iterable[int]) -> str:
        """The mIoU over the same folds as far as the source has them, and how it was made."""
        known = [self.folds[fold] for fold in folds if fold < len(self.folds)]
        some = "" if len(known) in (0, len(self.folds)) else "same folds"
        value = fmean(known) if some else self.mean or fmean(self.folds)
        about = [self.protocol, f"size {self.size}" if self.size else "", some]
        return f"{self.method} {value:.1f} ({', '.join(filter(None, about))})"


Row = tuple[str, str, int, str, str, int, str, str]  # set, variant, shots, protocol, list, size, scored at, network


class Fold(NamedTuple):
    """The newest test of a row's fold."""

    miou: float  # per cent
    episodes: int
    images: int | None  # distinct query images
    notes: Sequence[str]


def references() -> list[Reference]:
    """All published metrics: those of benchmarks.yaml, and of paper.yaml by the released protocol or an unknown one."""
    found = [Reference(**entry) for entry in yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))]
    for number, (name, own_size) in PAPER_TABLES.items():
        for row in published("tables")[number]["rows"]:
            net, shot, method = row["name"].split(", ")
            if net == "resnet50":
                paper, size = row["paper"], own_size if method == "HMNet" else None
                found.append(Reference(name, int(shot.split()[0]), "released", method, paper[4], paper[:4], size=size))
    for name, methods in published("later").items():
        for method, by_shot in methods.items():
            found += [Reference(name, k, "protocol not stated", method, value) for k, value in by_shot.items()]
    return found


def read_folds(folder: Path) -> dict[Row, dict[int, Fold]]:
    """The folds of every test below a folder that says what it was made with; older files have no such entry."""
    rows: dict[Row, dict[int, Fold]] = defaultdict(dict)
    results = current_results(folder.rglob("result*.json"), AnyTest)
    for result in sorted(results, key=lambda result: result.time):
        if about := result.test:
            network = f"{result.method} {result.cfg.backbone_name}, {about.trained_on.split()[0]}"
            which, how = (about.set, about.variant, result.cfg.shot), (about.train_list, about.size, about.metric_size)
            for protocol, miou, episodes, images in metrics_of(result):
                row: Row = (*which, protocol, *how, network)
                rows[row][about.fold] = Fold(100 * miou, episodes, images, about.notes)
    return rows


def metrics_of(result: AnyTest) -> Iterator[tuple[str, float, int, int | None]]:
    """Protocol, mIoU as a fraction, number of episodes and of query images; several of a generalized test."""
    names: dict[str, str] = {result.cfg.protocol: "miou"}
    count = result.cfg.test_episodes or 1000
    if isinstance(result, OneClassResult):
        images, count = result.results[0].query_images, len(result.results[0].episode_iou)
    elif isinstance(result, SeveralClassesResult):
        images, order = result.runs[0].query_images, "" if result.first == "novel" else ", base first"
        several = {f"generalized{order} {label}": name for label, name in GENERALIZED.items()}
        names = {f"ways {result.ways}": "miou"} if result.kind == "ways" else several
    for protocol, name in names.items():
        if (miou := result.aggregate[name].mean) is not None:
            yield protocol, miou, count, images


def benchmark_table(folder: Path) -> Table:
    """A row per benchmark, shots and way of testing; published metrics stand in two columns by their protocol."""
    table, known, notes = Table("Benchmarks", COLUMNS), references(), dict[str, None]()
    for (data, variant, shot, protocol, *how), found in sorted(read_folds(folder).items()):
        tests = dict(sorted(found.items()))
        fitting = [one for one in known if (one.set, one.shot) == (data, shot)]
        same = [one for one in fitting if (one.tested_by(), one.variant or variant) == (protocol, variant)]
        other = [one for one in fitting if one not in same]
        episodes = "/".join(map(str, dict.fromkeys(test.episodes for test in found.values())))
        images = "/".join(str(test.images) for test in tests.values() if test.images) or "-"
        about = (str(shot), f"{protocol}, {episodes} episodes", images, *map(str, how))
        folds = ", ".join(f"{fold}: {test.miou:.1f}" for fold, test in tests.items())
        name, mean = f"{data} {variant}".strip(), f"{fmean(test.miou for test in tests.values()):.1f}"
        published_ones = ("; ".join(one.text(found) for one in some) or "-" for some in (same, other))
        table.rows.append((name, *about, folds, mean, *published_ones))
        notes |= dict.fromkeys(f"{name}: {note}" for test in found.values() for note in test.notes)
    table.notes = [
        "mIoU in per cent, mean of the folds that were tested; of each fold the newest test.",
        "Equal protocols may still differ in input size and backbone; sizes are given where they are known.",
        *notes,
    ]
    return table

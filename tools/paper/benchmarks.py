"""One table over all benchmarks that a folder of results holds, with published figures of the same protocol."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from tools.paper.published import published
from tools.paper.runs import read_json
from tools.paper.table import Table
from util.config import restore_config

REFERENCES = Path(__file__).with_name("benchmarks.yaml")
COLUMNS = (
    *("benchmark", "shots", "protocol", "training list", "size", "scored at", "network", "folds", "mIoU"),
    *("published, same protocol", "published, other protocol: not comparable"),
)
BASELINE_TABLES = {"pascal": "table1_pascal", "coco": "table2_coco"}


class Reference(NamedTuple):
    """A published figure."""

    set: str
    shot: int
    protocol: str
    method: str
    mean: float | None = None
    folds: Sequence[float] = ()  # all of them, where they are known
    variant: str = ""
    size: int | None = None

    def text(self, folds: Iterable[int]) -> str:
        """The figure over the same folds as far as the source has them, and how it was made."""
        known = [self.folds[fold] for fold in folds if fold < len(self.folds)]
        some = "" if len(known) in (0, len(self.folds)) else "same folds"
        value = fmean(known) if some else self.mean or fmean(self.folds)
        about = [self.protocol, f"size {self.size}" if self.size else "", some]
        return f"{self.method} {value:.1f} ({', '.join(filter(None, about))})"


class Row(NamedTuple):
    """What the tests of one row have in common: one benchmark, network and way of testing."""

    set: str
    variant: str
    shot: int
    protocol: str
    train_list: str
    size: int
    metric_size: str
    network: str


class RowFigures(NamedTuple):
    """A row's figures."""

    folds: dict[int, float]  # per cent; the newest test of each fold
    episodes: dict[int, int]
    notes: dict[str, None]


def references() -> list[Reference]:
    """All published figures: those of benchmarks.yaml, and of paper.yaml by the released protocol or an unknown one."""
    found = [Reference(**entry) for entry in yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))]
    for name, table in BASELINE_TABLES.items():
        for method, by_shot in published(table)["resnet50"].items():
            size = {"pascal": 473, "coco": 633}[name] if method == "HMNet" else None
            found += [Reference(name, k, "released", method, row[4], row[:4], size=size) for k, row in by_shot.items()]
    for name, methods in published("later").items():
        for method, by_shot in methods.items():
            found += [Reference(name, k, "protocol not stated", method, value) for k, value in by_shot.items()]
    return found


def read_results(folder: Path) -> dict[Row, RowFigures]:
    """The figures of every test below a folder that says what it was made with; older files have no such entry."""
    rows: dict[Row, RowFigures] = defaultdict(lambda: RowFigures({}, {}, {}))
    for path in sorted(folder.rglob("result*.json"), key=lambda path: path.stat().st_mtime):
        content = read_json(path)
        if content.get("kind") not in ("test", "ways", "generalized") or "test" not in content:
            continue
        cfg = restore_config(content["config"])
        if cfg is None:
            continue
        about = content["test"]
        for protocol, miou, episodes in _figures(content):
            network = f"{content['method']} {cfg.backbone_name}, {about['trained_on'].split()[0]}"
            sizes = about["size"], about["metric_size"]
            row = Row(about["set"], about["variant"], cfg.shot, protocol, about["train_list"], *sizes, network)
            rows[row].folds[about["fold"]] = 100 * miou
            rows[row].episodes[about["fold"]] = episodes
            rows[row].notes.update(dict.fromkeys(about["notes"]))
    return rows


def _figures(content: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Protocol, mIoU as a fraction and number of episodes of a result; several of a generalized one."""
    means = {name: value["mean"] for name, value in content["aggregate"].items()}
    count = content["config"]["test_episodes"] or 1000
    if content["kind"] == "test":
        yield content["test"]["protocol"], means["miou"], len(content["results"][0]["episode_iou"])
    elif content["kind"] == "ways":
        yield f"ways {content['ways']}", means["miou"], count
    else:
        first = "" if content["first"] == "novel" else ", base first"
        for figure, label in (("miou_novel", "mIoU-N"), ("miou_base", "mIoU-B"), ("miou_all", "mIoU-A")):
            if means[figure] is not None:
                yield f"generalized{first} {label}", means[figure], count


def benchmark_table(folder: Path) -> Table:
    """A row per benchmark, shots and way of testing; published figures stand in two columns by their protocol."""
    table = Table("Benchmarks", COLUMNS)
    known, notes = references(), dict[str, None]()
    for row, found in sorted(read_results(folder).items()):
        fitting = [r for r in known if (r.set, r.shot) == (row.set, row.shot)]
        same = [r for r in fitting if _is_same(r, row)]
        others = [r for r in fitting if r not in same]
        episodes = "/".join(map(str, dict.fromkeys(found.episodes.values())))
        folds = ", ".join(f"{fold}: {value:.1f}" for fold, value in sorted(found.folds.items()))
        name = f"{row.set} {row.variant}".strip()
        table.rows.append(
            (
                *(name, str(row.shot), f"{row.protocol}, {episodes} episodes", row.train_list, str(row.size)),
                *(row.metric_size, row.network, folds, f"{fmean(found.folds.values()):.1f}"),
                *("; ".join(r.text(found.folds) for r in refs) or "-" for refs in (same, others)),
            )
        )
        notes |= dict.fromkeys(f"{name}: {note}" for note in found.notes)
    table.notes += ["mIoU in per cent, mean of the folds that were tested; of each fold the newest test."]
    table.notes += [
        "Equal protocols may still differ in input size and backbone; sizes are given where they are known."
    ]
    table.notes += list(notes)
    return table


def _is_same(reference: Reference, row: Row) -> bool:
    """Whether a figure was made as the row's: protocol and variant; BAM's generalized figure is of novel classes."""
    protocol = "generalized mIoU-N" if reference.protocol == "generalized" else reference.protocol
    return (protocol, reference.variant or row.variant) == (row.protocol, row.variant)

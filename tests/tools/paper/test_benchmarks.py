"""The table over all benchmarks: what stands in a row, and beside which published figure."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.results import Moment
from tests.toy import ROOT
from tests.written import write_test
from tools import report
from tools.paper.benchmarks import COLUMNS, benchmark_table, references
from util.config import load_config


def write(folder: Path, name: str, split: int, miou: float, kind: str = "test", **keys: object) -> None:
    """A result as test.py writes it, as far as the table reads it."""
    words = [str(word) for pair in {"split": split, **keys}.items() for word in pair]
    cfg = load_config(ROOT / "config/base" / f"{keys.get('data_set', 'pascal')}.yaml", words)
    about = {"set": cfg.test_set or cfg.data_set, "fold": split, "protocol": cfg.protocol, "variant": cfg.variant or ""}
    about |= {"size": cfg.val_size, "metric_size": cfg.metric_size, "train_list": cfg.list_kind, "notes": ["a note"]}
    about["trained_on"] = f"{cfg.data_set} split {split}"
    path = folder / f"result_{name}.json"
    if kind == "test":
        write_test(cfg, path=path, test=about, aggregate={"miou": Moment(mean=miou)})
        return
    content: dict[str, Any] = {"kind": kind, "method": "hmnet", "config": cfg.model_dump(), "test": about}
    content |= {"metric_size": "input", "runs": [{"seed": 1, "class_iou": {}, "query_images": 5}]}
    if kind == "ways":
        content |= {"ways": 1, "aggregate": {"miou": {"mean": miou}}}
    else:
        means = {"miou_novel": miou, "miou_base": 0.6, "miou_all": None}
        content |= {"first": "novel", "aggregate": {name: {"mean": value} for name, value in means.items()}}
    path.write_text(json.dumps(content))


def rows(folder: Path) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in benchmark_table(folder).rows]


def test_folds_become_a_row_and_ways_of_testing_do_not_mix(tmp_path: Path) -> None:
    for split, miou in enumerate((0.5, 0.6)):
        write(tmp_path, f"a{split}", split, miou)
        write(tmp_path, f"b{split}", split, miou + 0.1, protocol="hsnet")
        write(tmp_path, f"c{split}", split, miou - 0.1, train_list="all")
        write(tmp_path, f"d{split}", split, miou - 0.2, val_size=401)
    found = {(r["protocol"], r["training list"], r["size"]): r for r in rows(tmp_path)}
    assert {key: row["mIoU"] for key, row in found.items()} == {
        ("released, 7 episodes", "filtered", "473"): "55.0",
        ("hsnet, 7 episodes", "filtered", "473"): "65.0",
        ("released, 7 episodes", "all", "473"): "45.0",
        ("released, 7 episodes", "filtered", "401"): "35.0",
    }
    assert found["hsnet, 7 episodes", "filtered", "473"]["folds"] == "0: 60.0, 1: 70.0"
    assert found["hsnet, 7 episodes", "filtered", "473"]["scored at"] == "input"
    assert {row["query images"] for row in found.values()} == {"5/5"}


def test_published_figures_stand_by_their_protocol(tmp_path: Path) -> None:
    for split in range(4):
        write(tmp_path, f"coco{split}", split, 0.5, data_set="coco", protocol="hsnet")
        write(tmp_path, f"pascal{split}", split, 0.5)
    write(tmp_path, "one", 1, 0.5, test_set="pascal_part", protocol="hsnet")
    write(tmp_path, "ways", 0, 0.5, kind="ways")
    write(tmp_path, "generalized", 0, 0.5, kind="generalized")
    write(tmp_path, "a", 0, 0.5, data_set="coco", test_set="coco2pascal", protocol="fptrans", variant="A")
    write(tmp_path, "c", 0, 0.5, data_set="coco", test_set="coco2pascal", protocol="fptrans", variant="C")
    by_name = {(row["benchmark"], row["protocol"].split(",")[0]): row for row in rows(tmp_path)}
    same, other = COLUMNS[-2:]
    assert by_name["coco", "hsnet"][same] == "Matcher 52.7 (hsnet, size 518)"
    assert by_name["pascal_part", "hsnet"][same] == "Matcher 56.3 (hsnet, size 518, same folds)"
    assert "HMNet 52.1 (released, size 633)" in by_name["coco", "hsnet"][other]
    assert "SANSA 60.2 (protocol not stated)" in by_name["coco", "hsnet"][other]
    assert "HMNet 70.4 (released, size 473)" in by_name["pascal", "released"][same]
    assert "BAM, mIoU-N" not in by_name["pascal", "released"][same]
    assert by_name["pascal", "ways 1"][same].startswith("PANet, fold 0 41.6")
    assert by_name["pascal", "generalized mIoU-N"][same].startswith("BAM, mIoU-N 47.9")
    assert (
        "27.5" in by_name["pascal", "generalized mIoU-N"][other]
        and by_name["pascal", "generalized mIoU-B"][same] == "-"
    )
    assert by_name["coco2pascal A", "fptrans"][same] == by_name["coco2pascal C", "fptrans"][same] == "-"
    assert "VRP-SAM 68.0 (A, draws not stated)" in by_name["coco2pascal A", "fptrans"][other]
    for row in rows(tmp_path):  # every figure with its protocol, none twice
        assert not set(row[same].split("; ")) & set(row[other].split("; ")) - {"-"}
    assert all(reference.protocol for reference in references())


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path, "pascal", 0, 0.5)
    write_test(load_config(ROOT / "config/base/pascal.yaml"), path=tmp_path / "result_old.json")  # says less
    monkeypatch.setattr(sys, "argv", ["report", "benchmarks", "--exp", str(tmp_path), "--out", str(tmp_path / "out")])
    report.main()
    printed = capsys.readouterr().out
    assert "| pascal" in printed and "- pascal: a note" in printed
    assert (tmp_path / "out/benchmarks.md").read_text().strip() == printed.strip()
    assert r"\toprule" in (tmp_path / "out/benchmarks.tex").read_text()

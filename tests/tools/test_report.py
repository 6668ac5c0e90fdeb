"""From result files to tables, and from tables to the commands that fill them."""

import csv
import hashlib
import json
import os
import re
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.results import OneClassResult, read_result
from tests.toy import ROOT, entry_point, generator, toy_config, write_toy, write_weights
from tests.written import seed_metrics, write_test
from tools import benchmark, report
from tools.paper.published import published
from tools.paper.runs import RunSpec, read_runs
from tools.paper.tables import TABLES, Cell, Sheet, Sources
from tools.paper.tables import fill as fill_table
from util.arguments import evaluation_arguments, experiment_config, training_arguments
from util.config import Config, load_config
from util.errors import UserError

PASCAL = "config/pascal/pascal_split{}_resnet50_manet.yaml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the project's configs and no runs."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(sheet: Sheet, name: str) -> dict[str, Cell]:
    return dict(zip(sheet.columns, sheet.rows[name], strict=True))


def fill(number: int, place: Path, *more: Any) -> Sheet:
    return fill_table(number, Sources(read_runs(place / "exp"), *more))


def parse(command: str) -> tuple[str, Config, Path | None]:
    """What a command runs: script, configuration and result file."""
    _, script, *words = shlex.split(command)
    if script == "tools/launch.sh":
        config, name, *rest = words[2:]
    else:  # train_pascal.sh PORT SPLIT NET EXP, test_coco.sh SPLIT NET EXP, train_base.sh PORT DATA SPLIT NET
        stage, data = script.removesuffix(".sh").split("_")
        words = words[stage == "train" :]
        if data == "base":
            name, data, split, net, exp, rest = "train_base.py", *words[:3], "manet", words[3:]
        else:
            name, split, net, exp, rest = f"{stage}.py", *words[:3], words[3:]
        config = f"config/{data}/{data}_split{split}_{net}_{exp}.yaml"
    if name != "test.py":
        return name, experiment_config(training_arguments("", ["--config", config, *rest])), None
    given = evaluation_arguments(["--config", config, *rest])
    return name, experiment_config(given), given.result


def test_without_runs_a_table_is_the_paper(place: Path) -> None:
    sheet = fill(1, place)
    assert cells(sheet, "resnet50, 1 shot, HMNet")["fold 2"] == Cell(paper=70.0)
    assert cells(sheet, "vgg, 5 shot, BAM")["mean"] == Cell(paper=68.8)
    assert cells(sheet, "vgg, 5 shot, HDMNet")["FB-IoU"] == Cell()


@pytest.mark.parametrize("number", range(1, 10))
def test_every_table_holds_all_published_numbers(place: Path, number: int) -> None:
    sheet, paper = fill(number, place), published("tables")[number]["rows"]
    assert list(sheet.rows) == [row["name"] for row in paper]
    for found, published_row in zip(sheet.rows.values(), paper, strict=True):
        shown = [cell.paper for cell in found]
        assert len(shown) == len(sheet.columns)
        assert [*shown, None][: len(published_row["paper"])] == published_row["paper"]


def test_a_filled_cell_and_its_difference(place: Path) -> None:
    write_test(load_config(PASCAL.format(2)), seed_metrics(miou=0.712, fb_iou=0.8))
    cell = cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"]
    assert cell.own == pytest.approx(71.2)
    assert cell.difference == pytest.approx(1.2)
    assert cell.spread is None
    assert cell.text() == "71.2 / 70.0 / +1.2"
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["mean"].own is None  # three folds are missing
    for split in (0, 1, 3):
        write_test(load_config(PASCAL.format(split)), seed_metrics(miou=0.6, fb_iou=0.7))
    filled = cells(fill(1, place), "resnet50, 1 shot, HMNet")
    assert filled["mean"].own == pytest.approx((71.2 + 3 * 60) / 4)
    assert filled["FB-IoU"].own == pytest.approx((80 + 3 * 70) / 4)


def test_spread_is_over_training_seeds(place: Path) -> None:
    for seed, miou in ((1, 0.6), (2, 0.7)):
        write_test(
            load_config(PASCAL.format(0), ["manual_seed", str(seed), "exp", f"exp/{seed}"]), seed_metrics(miou=miou)
        )
    newer = write_test(load_config(PASCAL.format(0), ["manual_seed", "2", "exp", "exp/3"]), seed_metrics(miou=0.8))
    later = time.time() + 1e6
    os.utime(newer, (later, later))  # replaces the older run with that seed
    cell = cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 0"]
    assert cell.own == pytest.approx(70)
    assert cell.spread == pytest.approx(14.142136)  # of 60 and 80
    assert cell.text() == "70.0 ± 14.1 / 72.2 / -2.2"
    chosen = Sources(read_runs(place / "exp", [1, 5]), splits=[0], training_seeds=[1, 5])
    sheet = fill_table(1, chosen)
    assert cells(sheet, "resnet50, 1 shot, HMNet")["fold 0"].own == pytest.approx(60)
    assert any("manual_seed 5 exp exp/manual_seed-5" in command for command in sheet.missing)
    assert not any("manual_seed 1 " in command and " 0 resnet50 manet " in command for command in sheet.missing)


def test_what_belongs_to_no_table_is_passed_over_and_what_cannot_be_read_is_named(place: Path) -> None:
    cfg = load_config(PASCAL.format(0))
    write_test(cfg, method="prior", path=place / "exp/a/result_prior.json")
    (place / "exp/a/result.json").write_text('{"kind": "training"}')
    assert [run.result.method for run in read_runs(place / "exp")] == ["prior"]
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 0"].own is None
    path = write_test(cfg, config={**cfg.model_dump(), "old": 1}, path=place / "exp/a/result_old.json")
    with pytest.raises(UserError, match=r"result_old.json: config: unknown key 'old'; remove the file or test again"):
        fill(1, place)
    path.unlink()
    for text, message in (
        ("[1]", "Input should be an object; remove"),
        ('{"kind": ', "Invalid JSON: .*; remove"),
    ):
        (place / "exp/a/result_other.json").write_text(text)
        with pytest.raises(UserError, match=f"result_other.json: {message}"):
            read_runs(place / "exp")


def test_other_settings_are_told(place: Path) -> None:
    write_test(load_config(PASCAL.format(0), ["test_episodes", "100", "val_size", "241"]), seed_metrics(miou=0.6))
    sheet = fill(5, place)
    assert cells(sheet, "mask")["fold 0"].own == pytest.approx(60)
    note = "mask, fold 0: val_size 241 instead of 473, test_episodes 100 instead of 1000"
    assert note in sheet.notes
    write_test(load_config(PASCAL.format(0), ["exp", "exp/full"]), seed_metrics(miou=0.7))  # one as wanted is preferred
    sheet = fill(5, place)
    assert cells(sheet, "mask")["fold 0"].own == pytest.approx(70)
    assert note not in sheet.notes


def test_rows_are_told_apart(place: Path) -> None:
    """Every network of Table 3 in its own row and in no other."""
    components = {
        "self no, SRM none, QIM none, ensemble no": ["self_blocks", "false", "srm", "none", "qim", "none"],
        "self yes, SRM basic, QIM none, ensemble no": ["srm", "basic", "qim", "none"],
        "self yes, SRM recap, QIM share, ensemble no": [],
    }
    for number, changes in enumerate(components.values(), 1):
        cfg = load_config(PASCAL.format(0), ["ensemble", "false", "exp", f"exp/{number}", *changes])
        write_test(cfg, seed_metrics(miou=number / 10))
    sheet = fill(3, place)
    found = {name: row[0].own for name, row in sheet.rows.items() if row[0].own is not None}
    assert found == {name: pytest.approx(10.0 * number) for number, name in enumerate(components, 1)}
    assert cells(fill(8, place), "concat (BAM)")["fold 0"].own == pytest.approx(10)
    assert cells(fill(4, place), "8")["mIoU"].own is None


@pytest.mark.parametrize("config", [None, PASCAL.format(0)])
@pytest.mark.parametrize("number", range(1, 9))
def test_the_commands_make_what_is_missing(place: Path, number: int, config: str | None) -> None:
    """Read back as the entry points would, with results where they would write them, the commands fill the table."""
    sources = (None, config) if config else ()
    commands = [command for command in fill(number, place, *sources).missing if "tools.benchmark" not in command]
    assert len(commands) == len(set(commands))
    trained: dict[Path, Config] = {}
    written: dict[Path, Config] = {}
    for command in commands:
        name, cfg, path = parse(command)
        if name == "test.py":
            network = {
                key: getattr(cfg, key) for key in ("split", "srm", "qim", "fusion", "blocks", "ensemble", "shot")
            }
            made = trained[cfg.experiment_dir / f"best_{cfg.shot}shot.pth"]
            assert {key: getattr(made, key) for key in network} == network
            path = path or write_test(cfg)
            assert path not in written
            written[path] = cfg
            write_test(cfg, *(seed_metrics(seed, seconds=5) for seed in cfg.seeds), path=path)
        elif name == "train.py":
            assert cfg.resume == "auto"
            weights = cfg.experiment_dir / f"best_{cfg.shot}shot.pth"
            assert trained.setdefault(weights, cfg) == cfg  # no two networks in one place
    assert written
    sheet = fill(number, place, *sources)
    assert [command for command in sheet.missing if "tools.benchmark" not in command] == []
    assert [note for note in sheet.notes if "instead of" in note] == []
    own = [name for name in sheet.rows if number in (3, 4, 5, 8) or re.search(r"HMNet($|,)(?!.*std)", name)]
    assert {sheet.rows[name][0].own for name in own if "HDMNet" not in name and "printed" not in name} == {50.0}


def test_only_what_is_missing_is_trained(place: Path) -> None:
    wanted = RunSpec(PASCAL.format(0), {"srm": "basic"})
    base, train, test = wanted.commands()
    assert base == "sh train_base.sh 1234 pascal 0 resnet50 --opts resume auto"
    assert train == "sh train_pascal.sh 1234 0 resnet50 manet --opts srm basic exp exp/srm-basic resume auto"
    assert test == "sh test_pascal.sh 0 resnet50 manet --opts srm basic exp exp/srm-basic"
    wanted.cfg.base_learner_path.parent.mkdir(parents=True)
    wanted.cfg.base_learner_path.touch()
    assert wanted.commands() == [train, test]
    snapshots = wanted.cfg.experiment_dir / "snapshot"
    snapshots.mkdir(parents=True)
    (snapshots / "best_1shot.pth").touch()
    assert wanted.commands() == [test]
    course = wanted.cfg.experiment_dir / "result.json"
    course.write_text('{"kind": "training", "finished": false}')  # an interrupted training has to go on first
    assert wanted.commands() == [train, test]
    course.unlink()
    (snapshots / "best_1shot.pth").rename(snapshots / "train_epoch_210_0.7216.pth")
    assert wanted.commands() == [test]


def test_measurements_fill_tables_4_and_9(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table, row in ((9, "sizes"), (4, "blocks")):
        monkeypatch.setattr(sys, "argv", shlex.split([*fill(table, place).missing][-1])[2:])
        arguments = benchmark.parse_arguments()
        assert arguments.rows == [row] and load_config(arguments.config or benchmark.CONFIG).shot == 1
    large = {"val_size": 633, "feature_size": 80, "fusion": "hmnet", "error": "killed"}
    small = {"val_size": 473, "feature_size": 64, "fusion": "hmnet", "size": 473, "cold s": 0.5}
    for name, content in (
        ("sizes", [small, large]),
        ("blocks", [{"blocks": 4, "parameters M": 33.5, "GFLOP": 400.0, "cold s": 0.5}]),
    ):
        (place / "exp" / name).mkdir(parents=True)
        (place / "exp" / name / "benchmark.json").write_text(json.dumps({"kind": "benchmark", name: content}))
    measured = report.find_benchmark(place / "exp")
    sizes = cells(fill(9, place, measured), "HMNet")
    assert sizes["473"] == Cell(own=2000.0, paper=402.4)
    notes = fill(9, place, measured).notes
    assert "Own feature sizes: 64 at 473, 80 at 633; the paper's: 60, 80, 100, 120, 140." in notes
    assert sizes["633"] == Cell(paper=576.9)
    blocks = cells(fill(4, place, measured), "4")
    assert [blocks[key].own for key in ("parameters M", "GFLOP", "frames/s")] == [33.5, 400.0, 2.0]
    quick = place / "exp/quick/benchmark.json"
    quick.parent.mkdir()
    quick.write_text(json.dumps({"kind": "benchmark", "quick": True, "sizes": []}))
    later = time.time() + 1e6
    os.utime(quick, (later, later))
    assert report.find_benchmark(place / "exp") == measured


def test_intervals_of_what_has_been_run(place: Path) -> None:
    assert report.interval_table(fill(1, place)) is None
    write_test(load_config(PASCAL.format(1)), seed_metrics(miou=0.6))
    write_test(load_config(PASCAL.format(1), ["manual_seed", "2", "exp", "exp/2"]), seed_metrics(miou=0.7))
    table = report.interval_table(fill(1, place))
    assert table.columns == ("", "fold 0", "fold 1", "fold 2", "fold 3")
    assert table.rows == [("resnet50, 1 shot, HMNet", "-", "55.0 [45.0, 65.0], 5 images", "-", "-")]
    assert report.interval_table(fill(4, place)) is None  # without the ensemble: another network


def test_statistics_over_seeds(place: Path) -> None:
    """Table 6's last rows, from all folds and seeds; empty as long as one is missing."""
    mious = generator().uniform(0.3, 0.6, (5, 4))
    for split in range(4):
        cfg = load_config(f"config/coco/coco_split{split}_resnet50_manet.yaml", ["seeds", "[0, 1, 2, 3, 321]"])
        assert cells(fill(6, place), "HMNet, mean")["mean"].own is None
        write_test(
            cfg, *(seed_metrics(seed, float(value)) for seed, value in zip(cfg.seeds, mious[:, split], strict=True))
        )
    sheet = fill(6, place)
    for name, function, paper in (("mean", np.mean, 52.3), ("std", partial(np.std, ddof=1), 0.3)):
        filled = cells(sheet, f"HMNet, {name}")
        assert filled["fold 2"].own == pytest.approx(100 * function(mious[:, 2]))
        assert filled["mean"].own == pytest.approx(100 * function(mious.mean(1)))
        assert filled["mean"].paper == paper
    assert cells(sheet, "HDMNet, seed 2")["fold 0"] == Cell(paper=44.9)


def test_a_test_of_other_weights_than_lie_there_now_is_named_and_not_used(place: Path) -> None:
    cfg = load_config(PASCAL.format(2))
    weights = cfg.experiment_dir / "snapshot/best_1shot.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    about: dict[str, Any] = {"weights": str(weights), "weights_digest": hashlib.sha256(b"first").hexdigest()}
    path = write_test(cfg, seed_metrics(miou=0.712), **about)
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own == pytest.approx(71.2)
    weights.write_bytes(b"again")
    with pytest.warns(UserWarning, match=r"result_test_1shot.json: is of other weights than .*pth; .*test again"):
        assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own is None
    write_test(cfg, seed_metrics(miou=0.712), weights=str(weights))  # as former versions left it
    old = path.stat().st_mtime - 10
    os.utime(weights, (old, old))
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own == pytest.approx(71.2)
    os.utime(weights, (old + 20, old + 20))
    with pytest.warns(UserWarning, match=r"result_test_1shot.json: is older than .*best_1shot.pth"):
        assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own is None


def test_base_learners_beside_the_published(place: Path) -> None:
    write_test(load_config(PASCAL.format(0)))  # a test in the same exp is none of a base learner
    course = place / "exp/coco/PSPNet/split1/vgg/result.json"
    course.parent.mkdir(parents=True)
    course.write_text('{"kind": "training", "finished": true, "miou": 0.4404}')
    ready = place / "initmodel/PSPNet/pascal/split3/resnet50/best.pth"
    ready.parent.mkdir(parents=True)
    ready.touch()
    sheet = fill(0, place)
    cell = cells(sheet, "coco, vgg")["fold 1"]
    assert (cell.own, cell.paper, cell.difference) == (pytest.approx(44.04), 43.04, pytest.approx(1))
    assert cells(sheet, "pascal, resnet50")["fold 3"] == Cell(paper=73.72)
    assert len(sheet.missing) == 14 and "sh train_base.sh 1234 coco 1 resnet50 --opts resume auto" in sheet.missing


def test_other_methods_stand_beside_what_they_published(place: Path) -> None:
    for split in range(4):
        for name, miou in (("vgg_bam_5s", 0.7), ("resnet50_hsnet", 0.6)):
            cfg = load_config(f"config/pascal/pascal_split{split}_{name}.yaml")
            write_test(cfg, seed_metrics(miou=miou, fb_iou=0.8), method=cfg.arch)
    sheet = fill(1, place)
    assert cells(sheet, "vgg, 5 shot, BAM")["mean"].difference == pytest.approx(70 - 68.8)
    assert cells(sheet, "resnet50, 1 shot, HSNet")["fold 0"].difference == pytest.approx(60 - 64.3)
    assert cells(sheet, "resnet50, 5 shot, BAM")["mean"].own is None


def test_later_methods_stand_below_the_tables(place: Path) -> None:
    notes = [fill(number, place).notes[-1] for number in (1, 2)]
    assert "UINO-FSS 80.6, FSSAM 81.0" in notes[0] and "GF-SAM 58.7 / 66.8, SANSA 60.2 / 64.3" in notes[1]


def run_report(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *words])
    report.main()


def test_files_in_three_formats(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_test(load_config(PASCAL.format(2)), seed_metrics(miou=0.712))
    run_report(monkeypatch, "--out", "tables")
    printed = capsys.readouterr().out
    assert [int(number) for number in re.findall(r"^## Table (\d): (?!mean)", printed, re.M)] == list(range(1, 10))
    assert "| 71.2 / 70.0 / +1.2 |" in printed
    assert "- / 71.6" in printed
    for number in TABLES:
        tex = (place / f"tables/table{number}.tex").read_text()
        body = tex[tex.index(r"\toprule") : tex.index(r"\bottomrule")].splitlines()
        columns = {line.count(" & ") for line in body if line.endswith(r"\\")}
        assert len(columns) == 1 and columns != {0}
        assert not re.search(r"(?<!\\)[_%#]", tex)
        with (place / f"tables/table{number}.csv").open() as file:
            rows = list(csv.DictReader(file))
        first = (place / f"tables/table{number}.md").read_text().split("\n## ")[0]
        lines = [line for line in first.splitlines() if line.startswith("|")][2:]
        assert len(rows) == sum(line.replace("\\|", "").count("|") - 2 for line in lines)
    with (place / "tables/table5.csv").open() as file:
        (cell,) = [line for line in csv.DictReader(file) if line["row"] == "mask" and line["column"] == "fold 2"]
    assert (float(cell["own"]), float(cell["published"])) == (pytest.approx(71.2), 70.0)
    assert float(cell["difference"]) == pytest.approx(1.2)


def test_commands_are_told_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_report(monkeypatch, "3", "8", "--splits", "1", "--commands", "--out", "tables")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 1 + 2 * (8 + 2)  # one base learner; two of Table 8's four are in Table 3
    assert not (place / "tables").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["10"], "there is no Table 10: the paper's tables are 1 to 9"),
        (["3", "--splits", "4"], "--splits 4: the paper has folds 0 to 3"),
        (["3", "--config", "nowhere.yaml"], "nowhere.yaml: cannot read this config file"),
    ],
)
def test_mistakes_are_one_line(place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_report(monkeypatch, *words)


def test_the_report_reads_what_a_test_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy(tmp_path / "toy")
    cfg = toy_config(tmp_path)
    (tmp_path / "toy.yaml").write_text(cfg.to_yaml())
    write_weights(cfg)
    entry_point("test").main(evaluation_arguments(["--config", str(tmp_path / "toy.yaml")]))
    capsys.readouterr()
    metrics = read_result(cfg.experiment_dir / "result_test_1shot.json", OneClassResult).results[0]
    words = ["--config", str(tmp_path / "toy.yaml"), "--exp", cfg.exp, "--out", str(tmp_path / "tables")]
    run_report(monkeypatch, "3", *words, "--splits", "0")
    lines = capsys.readouterr().out.splitlines()
    assert f"- This project's metrics are of toy, tiny, {tmp_path / 'toy.yaml'}: not of the same data." in lines
    line, interval = [line for line in lines if "ensemble yes" in line]
    mean, limits = 100 * metrics.mean_episode_iou, [100 * limit for limit in metrics.interval]
    assert f"| {mean:.1f} [{limits[0]:.1f}, {limits[1]:.1f}], {metrics.query_images} images |" in interval
    own = f"{100 * metrics.miou:.1f}"
    assert [cell.strip().split(" / ")[0] for cell in line.split("|")[2:4]] == [own, own]
    run_report(monkeypatch, "5", *words, "--splits", "0", "--commands")
    (command,) = capsys.readouterr().out.splitlines()  # the weights are there, and the test with masks is done
    assert "test.py --opts split 0 ann_type bbox" in command

"""The report, and from tables to the commands that fill them."""

import csv
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

import pytest

from engine.results import OneClassResult, read_result
from tests.tools.paper.sheets import PASCAL, cells, fill
from tests.toy import entry_point, toy_config, write_toy, write_weights
from tests.written import seed_metrics, write_test
from tools import benchmark, report
from tools.paper.runs import RunSpec
from tools.paper.tables import TABLES, Cell
from util.arguments import evaluation_arguments, experiment_config, training_arguments
from util.config import Config, load_config
from util.errors import UserError


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

"""A study trains and tests what is left, breadth first, and compares what there is."""

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

from engine.identity import method_name, result_name
from tests.tools.test_compare import write
from tests.toy import ROOT, toy_config
from tools import study
from util.config import load_config
from util.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for fold in (0, 1):
        (tmp_path / f"toy{fold}.yaml").write_text(toy_config(tmp_path, split=fold).to_yaml())
    methods = {
        "A": {"trainings": 2, "blocks": 4},
        "B & C": {"fusion": "mlp"},
        "free": {"trainings": 0, "arch": "prior"},
    }
    content = {"exp": str(tmp_path / "exp"), "sets": {"toy": ["toy0.yaml", "toy1.yaml"]}, "methods": methods}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_every_run_is_made_once_and_compared(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entry points are tested elsewhere; here they leave what they would."""
    called = []

    def entry_point(title: str, script: str, *arguments: str, config: str) -> None:
        cfg = load_config(config, arguments[arguments.index("--opts") + 1 :])
        called.append((script, cfg.arch, cfg.fusion, cfg.split, cfg.manual_seed))
        if script == "train_base.py":
            cfg.base_learner_path.parent.mkdir(parents=True)
            cfg.base_learner_path.touch()
        if script == "test.py":
            name = result_name(cfg, method_name(cfg), config, None if cfg.arch == "prior" else Path("w"))
            score = 5 if cfg.arch == "prior" else {"mlp": 10, "hmnet": 30}[cfg.fusion]
            path = cfg.experiment_dir / f"result_{name}.json"
            write(path, [score] * 8, **cfg.model_dump())
            path.write_text(json.dumps(json.loads(path.read_text()) | {"method": cfg.arch}))

    monkeypatch.setattr(study, "step", entry_point)
    monkeypatch.setattr(sys, "argv", ["study", str(file), "--folds", "1"])
    study.main()
    first = [
        (script, *rest)
        for rest in (("HMNet", "hmnet", 0, 0), ("HMNet", "mlp", 0, 0))
        for script in ("train.py", "test.py")
    ]
    again = [(script, "HMNet", "hmnet", 0, 1) for script in ("train.py", "test.py")]
    base_learner = ("train_base.py", "HMNet", "hmnet", 0, 0)
    assert called == [base_learner, *first, ("test.py", "prior", "hmnet", 0, 0), *again]
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| B & C"))
    assert "+20.0 [+20.0, +20.0]" in row and (file.parent / "exp/study.md").read_text() in text
    written = list(csv.DictReader((file.parent / "exp/study.csv").open()))
    cells = [written[1][name] for name in ("set", "method", "mIoU", "ahead")]
    assert cells == ["toy", "B & C", "10.0", "+20.0 [+20.0, +20.0]"] and None not in {*written[1], *written[1].values()}
    assert "B &amp; C" in (file.parent / "exp/study.svg").read_text()
    study.main()
    assert len(called) == 8  # nothing is left to do
    changed = file.with_name("toy0.yaml")
    before = changed.read_text()
    changed.write_text(toy_config(file.parent, split=0, base_epochs=7).to_yaml())
    with pytest.raises(UserError, match="made with base_epochs .* instead of 7"):
        study.main()
    changed.write_text(before)
    (path,) = (file.parent / "exp").glob("toy/A/seed0/**/result_test*.json")
    write(path.with_name("result_test_5shot.json"), [5] * 8, shot=5, trained_shot=1)  # of no run of the study
    study.main()
    assert capsys.readouterr().out.endswith(text)
    monkeypatch.setattr(sys, "argv", ["study", str(file), "--methods", "B & C", "--table"])
    study.main()
    assert len(called) == 8
    monkeypatch.setattr(sys, "argv", ["study", str(file)])
    study.main()
    assert " 1 (1 shot" in capsys.readouterr().out and " 1 (1 shot" not in text
    monkeypatch.setattr(sys, "argv", ["study", str(file), "--folds", "1", "--table"])
    study.main()
    assert capsys.readouterr().out.endswith(text)  # of the second fold there is nothing in it


def test_a_method_that_a_set_cannot_have_is_named_before_the_work(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(file.read_text())
    content["methods"]["B & C"] = {"arch": "SCCAN", "feature_size": 12}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(study, "step", lambda *_, **__: pytest.fail("a run before all mistakes are told"))
    monkeypatch.setattr(sys, "argv", ["study", str(file)])
    with pytest.raises(UserError, match=r"B & C, toy\d.yaml, seed 0: feature_size: 12 should be a multiple of 8"):
        study.main()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exp: x\nsets: {a: [b]}\n", "methods: Field required"),
        ("exp: x\nsets: {a: [b]}\nmethods: {A: {trainings: -1}}\n", r"methods\.A\.trainings: Input should be greater"),
        ("exp: x\nexp: y\n", "line 2: not valid YAML: the key exp is there twice"),
        ("exp: x\nsets: {a: []}\nmethods: {A: {}}\n", r"sets\.a: List should have at least 1 item"),
        ("- 1\n", "study: Input should be a valid dictionary"),
        ("a: [", r"line \d: not valid YAML"),
    ],
)
def test_a_file_that_is_no_study_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"study.yaml: {message}"):
        study.read_study(path)
    with pytest.raises(UserError, match=r"none.yaml: no readable study there"):
        study.read_study(tmp_path / "none.yaml")


def test_the_study_of_the_tree(tmp_path: Path) -> None:
    """Every run of it has a config that loads, a folder of its own and a network that can be built."""
    path = ROOT / "config/study/study.yaml"
    found = list(study.jobs(study.read_study(path), path.parent))
    folders = {load_config(job.config, job.opts).experiment_dir for job in found}
    assert len(folders) == len(found) == 8 * 20 + 2 * 2 * 8
    study.check(job for job in found if job.of[0] == "MSRC-4i")

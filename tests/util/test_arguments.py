"""The command line: flags in any order, none abbreviated, and what scripts of the field pass."""

import random
import subprocess
import sys

import pytest

from model.build import build_model
from tests.toy import ROOT
from util.arguments import Parser, evaluation_arguments, experiment_config, split_opts, training_arguments
from util.config import load_config
from util.errors import UserError

CONFIG = "config/coco/coco_split1_resnet50_manet.yaml"


def test_overrides_come_after_the_architecture() -> None:
    given = training_arguments("", ["--config", CONFIG, "--arch", "HMNet", "--opts", "shot", "5", "amp", "bf16"])
    cfg = experiment_config(given)
    assert not given.viz and (cfg.arch, cfg.shot, cfg.amp) == ("HMNet", 5, "bf16")
    assert experiment_config(training_arguments("", ["--config", CONFIG])) == load_config(CONFIG)


def test_another_method_and_its_former_flag() -> None:
    for flag in ("--arch", "--method"):
        assert experiment_config(evaluation_arguments(["--config", CONFIG, flag, "prototype"])).arch == "prototype"
    with pytest.raises(UserError, match="arch: 'HMnet' is no method; nearest is 'HMNet'"):
        build_model(experiment_config(training_arguments("", ["--config", CONFIG, "--arch", "HMnet"])))


def test_flags_and_pairs_in_any_order() -> None:
    groups = [
        ["--config", CONFIG],
        ["--visualize", "2"],
        ["--opts", "shot", "5", "index_split", "-1", "rotate_min", "-1e1", "seeds", "[1, 2]"],
        ["--opts", "trunk_lr", "1e-4"],
        ["--support-check"],
    ]
    random.shuffle(groups)
    given = evaluation_arguments([word for group in groups for word in group])
    assert given.visualize == 2 and given.support_check
    words = ["shot", "5", "index_split", "-1", "rotate_min", "-10", "seeds", "[1, 2]", "trunk_lr", "0.0001"]
    assert experiment_config(given) == load_config(CONFIG, words)


@pytest.mark.parametrize(
    "words",
    ["--ways 2 --generalized", "--ways 2 --visualize", "--generalized --support-check", "--ways 1 --episodes-out x"],
)
def test_arguments_of_different_tests_do_not_mix(words: str) -> None:
    one, other = (word for word in words.split() if word.startswith("--"))
    with pytest.raises(UserError, match=f"^{one} and {other}: are of different tests; leave one out$"):
        evaluation_arguments(["--config", CONFIG, *words.split()])
    with pytest.raises(UserError, match="^--visualize -1: should be at least 0$"):
        evaluation_arguments(["--config", CONFIG, "--visualize", "-1"])


def test_a_key_without_value_stays_one() -> None:
    assert split_opts(["--opts", "shot", "--html"]) == (["--html"], ["shot"])
    assert split_opts(["a", "--opts"]) == (["a"], [])


def test_nothing_is_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--episodes=4", "--conf=x", "--visual=3", "--opt"):
        with pytest.raises(SystemExit) as stop:
            evaluation_arguments([f"--config={CONFIG}", flag])
        assert stop.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err
    commands = Parser().add_subparsers()
    commands.add_parser("check").add_argument("--workers", type=int)
    with pytest.raises(SystemExit):
        commands.choices["check"].parse_args(["--work", "2"])


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("tools/**/*.py")), ids=str)
def test_every_command_has_this_parser(path: object) -> None:
    assert "argparse.ArgumentParser(" not in path.read_text()  # type: ignore[attr-defined]


def test_the_base_learner_is_no_method() -> None:
    words = ["--config", CONFIG, "--arch=PSPNet"]
    assert experiment_config(training_arguments("", words), stage=1) == load_config(CONFIG)
    for parse in (evaluation_arguments, lambda given: training_arguments("", given)):
        with pytest.raises(UserError, match=f"^--arch PSPNet: .*; run train_base.py --config {CONFIG}$"):
            experiment_config(parse(words))


@pytest.mark.parametrize("script", ["train.py", "train_base.py", "test.py", "predict.py", "test_pascal.py"])
def test_help_imports_no_heavy_package(script: str) -> None:
    program = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {script.replace('_pascal', '')}")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "util.errors" in imported and not imported & {"torch", "cv2", "numpy"}

"""The shell scripts: what they run, and what they say when they are used wrongly."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ["train_pascal.sh", "train_coco.sh"]
TEST = ["test_pascal.sh", "test_coco.sh"]
LAUNCH = ["-m", "tools.launch", "--nproc_per_node"]


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """Stands in for Python: knows of 3 GPUs, and otherwise prints its arguments, one a line."""
    path = tmp_path / "an interpreter"
    path.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo 3; else printf "%s\\n" "$@"; fi\n')
    path.chmod(0o755)
    return path


def run(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("NPROC", "PYTHON")}
    command = ["sh", str(ROOT / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=60)


def arguments(*words: str, folder: Path = ROOT, **environment: str) -> list[str]:
    done = run(*words, folder=folder, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("data_set", ["pascal", "coco"])
def test_train(data_set: str, interpreter: Path, tmp_path: Path) -> None:
    words = [f"train_{data_set}.sh", "1234", "2", "vgg", "manet_5s"]
    script = ["train.py", "--config", f"config/{data_set}/{data_set}_split2_vgg_manet_5s.yaml", "--viz"]
    python = str(interpreter)
    assert arguments(*words, PYTHON=python) == [*LAUNCH, "3", "--master_port=1234", *script]
    assert arguments(*words, PYTHON=python, NPROC="2") == [*LAUNCH, "2", "--master_port=1234", *script]
    assert arguments(*words, "--opts", "weight", "a b", PYTHON=python, NPROC="1", folder=tmp_path) == [
        *script,
        *("--opts", "weight", "a b"),
    ]


@pytest.mark.parametrize("data_set", ["pascal", "coco"])
def test_test(data_set: str, interpreter: Path) -> None:
    words = [f"test_{data_set}.sh", "0", "resnet50", "manet", "--opts", "shot", "5"]
    script = ["test.py", "--config", f"config/{data_set}/{data_set}_split0_resnet50_manet.yaml", "--opts", "shot", "5"]
    assert arguments(*words, PYTHON=str(interpreter)) == script
    several = arguments(*words, PYTHON=str(interpreter), NPROC="4")
    assert several == [*LAUNCH, "4", "--standalone", *script]


def test_train_base(interpreter: Path) -> None:
    script = ["train_base.py", "--config", "config/coco/coco_split3_vgg_manet.yaml", "--viz"]
    done = arguments("train_base.sh", "99", "coco", "3", "vgg", PYTHON=str(interpreter), NPROC="1")
    assert done == script


@pytest.mark.parametrize("script", [*TRAIN, *TEST, "train_base.sh"])
def test_usage(script: str, interpreter: Path) -> None:
    enough = ["1234", "0", "resnet50", "manet"] if script in TRAIN else ["1234", "pascal", "0", "resnet50"]
    enough = enough[1:] if script in TEST else enough
    done = run(script, *enough[:-1], PYTHON=str(interpreter))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"usage: sh {script} ")


@pytest.mark.parametrize(
    "words", [["train_pascal.sh", "1", "4", "vgg", "manet"], ["test_coco.sh", "0", "vgg16", "manet"]]
)
def test_missing_config(words: list[str], interpreter: Path) -> None:
    done = run(*words, PYTHON=str(interpreter))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: there is no config file config/")


def test_a_failing_entry_point_fails_the_script(interpreter: Path) -> None:
    interpreter.write_text("#!/bin/sh\nexit 7\n")
    assert run("test_pascal.sh", "0", "vgg", "manet", PYTHON=str(interpreter)).returncode == 7
    assert run("train_pascal.sh", "1", "0", "vgg", "manet", PYTHON=str(interpreter)).returncode == 7

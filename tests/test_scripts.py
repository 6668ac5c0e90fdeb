"""The shell scripts: what they run, and what they say when they are used wrongly."""

import os
import subprocess

import pytest

from tests.toy import ROOT

LAUNCH = "-m tools.launch --nproc_per_node"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script of this project, with `echo` for an interpreter unless another is given."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NPROC", "PYTHON")}
    settings = {**inherited, "PYTHON": "echo", **environment}
    return subprocess.run(["sh", str(ROOT / words[0]), *words[1:]], env=settings, capture_output=True, text=True)


@pytest.mark.parametrize("data", ["pascal", "coco"])
@pytest.mark.parametrize(
    ("words", "launcher", "script"),
    [
        (["train_{}.sh", "1234", "2", "vgg", "manet_5s"], "--master_port=1234", "train.py {} --viz"),
        (["test_{}.sh", "2", "vgg", "manet_5s"], "--standalone", "test.py {}"),
        (["train_base.sh", "99", "{}", "2", "vgg"], "--master_port=99", "train_base.py {} --viz"),
    ],
)
def test_what_is_run(data: str, words: list[str], launcher: str, script: str) -> None:
    config = f"config/{data}/{data}_split2_vgg_manet{'' if 'base' in words[0] else '_5s'}.yaml"
    command = [word.format(data) for word in words]
    expected = script.format(f"--config {config}")
    done = run(*command, "--opts", "shot", "5", NPROC="1")
    assert (done.stdout, done.stderr, done.returncode) == (f"{expected} --opts shot 5\n", "", 0)
    assert run(*command, NPROC="3").stdout == f"{LAUNCH} 3 {launcher} {expected}\n"
    assert run(*command, NPROC="1", PYTHON="false").returncode == 1
    for count in ("x", "0", "-1", "2.5"):
        wrong = run(*command, NPROC=count)
        assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.startswith(f"error: NPROC={count}: should")
    usage = run(*command[:-1])
    assert usage.returncode == 2 and usage.stderr.startswith(f"usage: sh {command[0]} ")
    missing = run(*command[:-1], "none")
    assert missing.returncode == 2 and missing.stderr.startswith("error: there is no config file config/")

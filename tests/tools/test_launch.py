"""What becomes of the exit codes of processes that torchrun started; the scripts need no torch, so they start fast."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import FORK, taken_port
from tools.launch import launch
from util.errors import run_main

SECOND_WAITS = "import os, signal, time; time.sleep(60 * int(os.environ['RANK'])); "
STOPS = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(*_):
    folder.joinpath("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
folder.joinpath("started").touch()
time.sleep(60)
"""


def run_launch(stderr: Path, arguments: list[str]) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w")
    run_main(lambda: launch(arguments))


def start(folder: Path, script: str, *options: str, processes: int = 2) -> tuple[Any, Path]:
    (folder / "script.py").write_text(script)
    arguments = ["--nproc_per_node", str(processes), *(options or ["--standalone"])]
    words = [*arguments, str(folder / "script.py"), str(folder)]
    process = FORK.Process(target=run_launch, args=(folder / "stderr", words))
    process.start()
    return process, folder / "stderr"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("", 0),
        ("import sys; sys.exit(75)", 75),
        ("import os, time; time.sleep(60 * int(os.environ['RANK'])); raise SystemExit(2)", 2),
        (
            "import os, signal, time; time.sleep(60 * int(os.environ['RANK'])); os.kill(os.getpid(), signal.SIGKILL)",
            137,
        ),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(tmp_path: Path, script: str, code: int) -> None:
    process, stderr = start(tmp_path, script)
    process.join(timeout=300)
    assert process.exitcode == code
    assert "Traceback" not in stderr.read_text()


def test_a_signal_is_passed_on_and_told(tmp_path: Path) -> None:
    process, stderr = start(tmp_path, STOPS, processes=1)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=300)
    assert process.exitcode == 75
    assert (tmp_path / "saved").exists()
    assert stderr.read_text().endswith("stopped by SIGTERM\n")


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with taken_port() as port:
        process, stderr = start(tmp_path, "", f"--master_port={port}")
        process.join(timeout=300)
    assert process.exitcode == 2
    text = stderr.read_text()
    assert "Traceback" not in text
    assert re.search(rf"^error: torchrun: [^\n]*{port}[^\n]*; choose another port[^\n]*$", text, re.M)

"""Two trainings and one folder: the second is refused in one line that says what differs, and nothing is changed."""

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.claim import claimed_run
from engine.paths import Paths
from engine.run import META_TOPICS
from engine.snapshot import snapshots
from tests.engine.runs import EPOCHS, KEYS, config, drive, signal_at
from tests.processes import FORK, run_processes
from util.distributed import ProcessGroup
from util.errors import UserError


def claim(folder: Path, overwrite: bool = False, rank: int = 0, **keys: Any) -> AbstractContextManager[None]:
    paths = Paths(folder, best=folder / "snapshot" / "best_1shot.pth", numbered="train")
    group = ProcessGroup(torch.device("cpu"), rank, 1 + rank)
    return claimed_run(config(folder, **{**KEYS, **keys}), paths, group, overwrite, META_TOPICS)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refuse(folder: Path, message: str, **keys: Any) -> None:
    before = contents(folder)
    with pytest.raises(UserError) as caught, claim(folder, **keys):
        pass
    line = str(caught.value)
    assert re.search(message, line) and "\n" not in line
    assert contents(folder) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    drive(folder, **KEYS)
    return folder


ELSEWHERE = r"choose another folder by `--opts exp FOLDER`"


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({}, "a training already"),
        ({"blocks": 4, "weight_decay": 0.5}, r"another training: blocks 8, not 4, weight_decay 0\.0001, not 0\.5"),
        ({"manual_seed": 5}, "another training: manual_seed 321, not 5"),
        ({"print_freq": 5}, "a training already"),
        ({"resume": "elsewhere.pth"}, "a training already"),
    ],
)
def test_a_training_is_not_replaced(finished: Path, keys: dict[str, Any], what: str) -> None:
    remedies = f"{ELSEWHERE}, go on with it by `--opts resume auto`, or remove it by --overwrite$"
    refuse(finished, f"^{re.escape(str(finished))}: holds {what}; {remedies}", **keys)


def test_an_unfinished_training_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        drive(tmp_path, signal_at(1), **KEYS)
    refuse(tmp_path, "holds another training: blocks 8, not 4;", blocks=4)
    with claim(tmp_path, resume="auto"):
        pass


def test_another_network_is_not_resumed(finished: Path) -> None:
    refuse(finished, "holds another network, which cannot be resumed: blocks 8, not 4;", resume="auto", blocks=4)
    for keys in ({}, {"base_lr": 0.5}, {"amp": "bf16"}, {"epochs": EPOCHS + 1}):
        with claim(finished, resume="auto", **keys):
            pass
    with claim(finished, resume=next(iter(snapshots(finished / "snapshot", "state").values()))):
        pass


def test_weights_alone_are_not_replaced(tmp_path: Path) -> None:
    """Such as a released base learner, which training did not leave there."""
    best = tmp_path / "snapshot" / "best_1shot.pth"
    best.parent.mkdir()
    best.write_bytes(b"weights")
    for keys in ({}, {"resume": "auto"}):
        refuse(tmp_path, f"^{re.escape(str(best))}: holds a training already; {ELSEWHERE}, or remove it", **keys)
    with claim(tmp_path, overwrite=True):
        assert not best.exists()


def test_overwriting_removes_what_was_there(tmp_path: Path) -> None:
    drive(tmp_path, **KEYS)
    others = [tmp_path / "snapshot" / name for name in ("train_epoch_210_0.7216.pth", "best_5shot.pth")]
    for path in others:
        path.touch()
    refuse(tmp_path, "--overwrite: removes what resume auto goes on from", overwrite=True, resume="auto")
    with claim(tmp_path, overwrite=True):
        left = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {*others, tmp_path / "log.txt", tmp_path / ".lock"}
    drive(tmp_path, **KEYS)


def test_two_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claim(run), pytest.raises(UserError, match=r"run: another run is writing to it; wait for its end, or choose"):
        claim(run).__enter__()
    assert not run.exists()


def enter(folder: Path) -> bool:
    with claim(folder):
        return True


def test_a_process_that_ends_gives_its_claim_back(tmp_path: Path) -> None:
    assert run_processes(1, enter, tmp_path) == [True]
    with claim(tmp_path), pytest.raises(AssertionError, match="another run is writing to it"):
        run_processes(1, enter, tmp_path)


def test_only_the_first_process_claims(finished: Path) -> None:
    with claim(finished, rank=1):
        pass


def test_no_folder_is_no_run(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    with claim(tmp_path / "new", resume="auto"):
        assert (tmp_path / "new" / ".lock").is_file()
    assert not (tmp_path / "new").exists()


def killed_with_a_worker(folder: Path, worker: Path) -> None:
    with claim(folder):
        if (child := os.fork()) == 0:
            time.sleep(60)
        worker.write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_no_claim_even_where_its_workers_live_on(tmp_path: Path) -> None:
    process = FORK.Process(target=killed_with_a_worker, args=(tmp_path / "run", tmp_path / "worker"))
    process.start()
    while process.exitcode is None:  # join would wait for the worker, which has inherited the pipe that it watches
        time.sleep(0.01)
    try:
        assert process.exitcode == -signal.SIGKILL
        with claim(tmp_path / "run"):
            pass
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from engine.loader import Batch, StepPlan, load_steps, shard_batches, start_worker
from tests.toy import ROOT
from util.distributed import ProcessGroup
from util.errors import UserError
from util.failures import explain_errors


def plan(items: int, batch: int, accumulate: int = 1, rank: int = 0, size: int = 1) -> StepPlan:
    return StepPlan(items, batch, accumulate, ProcessGroup(torch.device("cpu"), rank, size))


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (2, 1), (3, 2), (1, 4)])
def test_a_step_takes_the_same_items_however_they_are_spread(size: int, accumulate: int) -> None:
    seed, items, batch = random.randrange(2**31), random.randrange(100, 120), 24 // (size * accumulate)
    whole = plan(items, 24).batches(seed)
    spread = [plan(items, batch, accumulate, rank, size).batches(seed) for rank in range(size)]
    assert len(whole) == items // 24
    for step, expected in enumerate(whole):
        rounds = range(step * accumulate, (step + 1) * accumulate)
        assert [item for number in rounds for batches in spread for item in batches[number]] == expected
    assert sorted(item for expected in whole for item in expected) != list(range(24 * len(whole)))


def test_the_order_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = plan(50, 5).batches(7)
    torch.manual_seed(2)
    assert plan(50, 5).batches(7) == first != plan(50, 5).batches(8)
    assert plan(50, 5).batches(7, first_step=4) == first[4:]


def test_dealt_batches_are_those_of_one_process() -> None:
    items, batch, size = random.randrange(1, 30), random.randrange(1, 6), random.randrange(1, 5)
    shares = [shard_batches(items, batch, ProcessGroup(torch.device("cpu"), rank, size)) for rank in range(size)]
    joined = sorted(numbers for share in shares for numbers in share)
    assert joined == shard_batches(items, batch, ProcessGroup(torch.device("cpu")))
    assert [number for numbers in joined for number in numbers] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_few_items() -> None:
    with pytest.raises(UserError, match="batch_size: a step takes 12 items, but there are only 11; lower it"):
        plan(11, 3, accumulate=2, size=2).check("batch_size")


class Numbers(Dataset[dict[str, Any]]):
    def __getitem__(self, item: int) -> dict[str, Any]:
        if item == 13:
            raise UserError("JPEGImages/13.jpg: cannot be read; fetch it again")
        if item == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": torch.tensor(item)}


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_draws_no_random_number(workers: int) -> None:
    before = torch.get_rng_state()
    steps = list(load_steps(Numbers(), [[3, 1], [4, 1], [5, 9], [2, 6]], 2, workers))
    assert [[batch["value"].tolist() for batch in step] for step in steps] == [[[3, 1], [4, 1]], [[5, 9], [2, 6]]]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_worker_is_one_line(workers: int) -> None:
    with pytest.raises(UserError, match=r"\AJPEGImages/13\.jpg: cannot be read; fetch it again\Z"), explain_errors():
        list(load_steps(Numbers(), [[13]], 1, workers))


def test_a_dead_worker_is_one_line() -> None:
    with pytest.raises(UserError, match=r"\Aa loader worker died, [^\n]*resume auto[^\n]*\Z"), explain_errors():
        list(load_steps(Numbers(), [[1], [14]], 1, 1))


def test_too_little_shared_memory_is_told_before_workers_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of two workers needs five batches: the two that each prepares, and the one in use."""
    usage, batches = shutil.disk_usage("/"), [[item, item + 1] for item in range(0, 20, 2)]
    monkeypatch.setattr("engine.loader.SHARED_MEMORY", tmp_path)
    for free, processes, message in [
        (5 * 16, 1, None),
        (5 * 16 - 1, 1, "2 loader workers need 0 MB; use `--opts loader_workers 1`, .* --shm-size"),
        (2 * 5 * 16 - 1, 2, "use `--opts loader_workers 1`"),
        (15, 1, "use `--opts loader_workers 0`"),
    ]:
        monkeypatch.setattr("engine.loader.shutil.disk_usage", lambda _, free=free: usage._replace(free=free))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        if message is None:
            assert len(list(load_steps(Numbers(), [[1, 2], [3, 4]], 1, 2))) == 2
        else:
            with pytest.raises(UserError, match=message):
                load_steps(Numbers(), batches, 1, 2)
        load_steps(Numbers(), batches, 1, 0)


SMALL = """
import sys, time, torch
import engine.loader as loader
from util.failures import explain_errors
from util.errors import UserError

class Large(torch.utils.data.Dataset):
    def __getitem__(self, item):
        return {"image": torch.ones(4_000_000)}  # 16 MB

if sys.argv[1] == "unchecked":
    loader.check_shared_memory = lambda *_: None
start = time.monotonic()
try:
    with explain_errors():
        list(loader.load_steps(Large(), [[0], [1], [2], [3]], 1, 2))
except UserError as error:
    print(error)
assert time.monotonic() - start < 60
"""


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("checked", r"/dev/shm: 8 MB are free .* 2 loader workers need 80 MB; use `--opts loader_workers 0`"),
        ("unchecked", r"a loader worker died, perhaps for lack of memory: .* lower loader_workers \(0: none\)"),
    ],
)
def test_a_small_dev_shm_hangs_nothing(tmp_path: Path, mode: str, message: str) -> None:
    """In a mount namespace with 8 MB of it."""
    inside = "mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"{inside} true"], capture_output=True).returncode:
        pytest.skip("no mount namespace is permitted here")
    (tmp_path / "small.py").write_text(SMALL)
    command = ["unshare", "-rm", "sh", "-c", f'{inside} "$0" "$@"', sys.executable, str(tmp_path / "small.py"), mode]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert re.fullmatch(f"{message}.*\n", done.stdout), (done.stdout, done.stderr)


def test_what_the_system_refuses_is_named() -> None:
    message = r"^/nowhere/to/be/found: No such file or directory; fix that, then start"
    with pytest.raises(UserError, match=message), explain_errors():
        Path("/nowhere/to/be/found").read_text()


def test_a_full_disk() -> None:
    with (
        pytest.raises(UserError, match=r"No space left on device; make room"),
        explain_errors(),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)


@pytest.mark.parametrize(("parent", "main", "leaves"), [(1, 77, True), (77, 77, False), (1, 1, False), (8, 77, False)])
def test_a_worker_whose_main_process_is_gone_leaves(
    monkeypatch: pytest.MonkeyPatch, parent: int, main: int, leaves: bool
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(Queue, "_on_queue_feeder_error", None)  # put back after the test
    monkeypatch.setattr(os, "setsid", lambda: None)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(os, "_exit", codes.append)
    start_worker(0, main=main)
    assert codes == [1] * leaves


class Threads(Dataset[Batch]):
    """Items that say how many threads the process has that loads them, after OpenCV has worked in it."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: int) -> Batch:
        cv2.GaussianBlur(np.zeros((1500, 1500, 3), np.float32), (5, 5), 0)
        return {"threads": torch.tensor([torch.get_num_threads(), cv2.getNumThreads()])}


def test_a_worker_runs_one_thread() -> None:
    """Also when OpenCV's threads run in the main process, which a forked one has not."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        Threads()[0]
        time.sleep(0.5)  # until OpenCV's threads wait for work
        with alarm(60):
            steps = list(load_steps(Threads(), [[0], [1]], accumulate=1, workers=2))
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
    assert all(torch.equal(batch["threads"], torch.ones(1, 2, dtype=torch.int64)) for step in steps for batch in step)


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """TimeoutError where the block hangs."""

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

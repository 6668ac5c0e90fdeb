"""Several processes of one run, forked from the test: no import is paid for twice."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.loader import one_opencv_thread

FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    """A TCP port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def taken_port() -> Iterator[int]:
    """A TCP port at which somebody listens, by IPv6 too where the machine has it."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as listener:
        yield listener.getsockname()[1]


def start_processes(size: int, function: Callable[..., Any], *args: Any) -> tuple[list[Any], Any]:
    """Start `function(*args)` in `size` processes, in the environment that torchrun would give them.

    Returns the processes and a queue, on which each puts (rank, pickled result, exception) unless it is killed; the
    result of sys.exit is its code.
    """
    queue, port = FORK.Queue(), free_port()
    processes = [FORK.Process(target=_work, args=(queue, rank, size, port, function, args)) for rank in range(size)]
    with one_opencv_thread():
        for process in processes:
            process.start()
    return processes, queue


def run_processes(size: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """The results of `function(*args)` in `size` processes, in rank order; an exception in one is raised here."""
    processes, queue = start_processes(size, function, *args)
    results = {}
    try:
        for _ in processes:
            rank, result, error = queue.get(timeout=timeout)
            if error:
                raise AssertionError(f"process {rank}: {error}")
            results[rank] = pickle.loads(result)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return [results[rank] for rank in range(size)]


def _work(queue: Any, rank: int, size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # an OpenMP pool does not outlive a fork
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        # Pickled here: a queue would hand over tensors as shared memory, which goes when this process does.
        queue.put((rank, pickle.dumps(function(*args)), None))
    except SystemExit as stop:
        queue.put((rank, pickle.dumps(stop.code), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))

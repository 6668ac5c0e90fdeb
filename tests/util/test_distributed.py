import random
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.processes import run_processes, taken_port
from util.distributed import ProcessGroup, connect
from util.errors import UserError


def exercise(values: list[int], folder: Path) -> dict[str, object]:
    """Every method of World, in one process of several."""
    with connect("cpu") as process_group:
        norm = nn.BatchNorm1d(2)
        norm.running_mean += process_group.rank
        process_group.broadcast_buffers(norm)
        with process_group.main_first():
            if process_group.is_main:
                time.sleep(0.2)
                (folder / "cache").write_text("made")
            found = (folder / "cache").exists()
        return {
            "place": (process_group.rank, process_group.size, process_group.is_main, process_group.device.type),
            "sum": process_group.all_reduce(torch.tensor([values[process_group.rank], 1])).tolist(),
            "any": process_group.any(process_group.rank == 1, False),
            "gather": process_group.gather({"rank": process_group.rank}),
            "share": process_group.broadcast(Path(str(values[process_group.rank]))),
            "mean": norm.running_mean.tolist(),
            "found": found,
        }


@pytest.mark.parametrize("size", [1, 3])
def test_world(size: int, tmp_path: Path) -> None:
    values = [random.randrange(2**60) for _ in range(size)]  # above what floats hold exactly
    results = run_processes(size, exercise, values, tmp_path)
    for rank, result in enumerate(results):
        assert result == {
            "place": (rank, size, rank == 0, "cpu"),
            "sum": [sum(values), size],
            "any": [size > 1, False],
            "gather": [{"rank": r} for r in range(size)],
            "share": Path(str(values[0])),
            "mean": [0.0, 0.0],
            "found": True,
        }


def test_one_process_is_left_as_it_is() -> None:
    model = nn.Linear(2, 2)
    assert ProcessGroup(torch.device("cpu")).parallel(model) is model


def test_a_taken_port_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with taken_port() as port:
        for key, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(key, str(value))
        with (
            pytest.raises(UserError, match=rf"(?s)\A[^\n]*localhost:{port}, try another port: [^\n]*\Z"),
            connect("cpu"),
        ):
            pass

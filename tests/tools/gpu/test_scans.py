"""The scan's checks find a backend that is wrong, and pass one that is right."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tools.gpu import scans
from tools.gpu.setting import CheckError, CheckSetting, NothingToCheckError

CPU = CheckSetting(torch.device("cpu"))


def test_the_reference_passes() -> None:
    rows = scans.compare_backend(CPU, "reference")["errors"]
    assert len(rows) == 4 * len(scans.SHAPES["cpu"])
    assert {row["recap"] for row in rows} == {row["initial"] for row in rows} == {True, False}
    assert all(0 < row["gradients"] < 1e-5 and row["same bits twice"] for row in rows)


@pytest.mark.parametrize(("spoilt", "message"), [("y", "outputs"), ("dA", "gradients")])
def test_a_wrong_value_fails(monkeypatch: pytest.MonkeyPatch, spoilt: str, message: str) -> None:
    right = scans.run_scan

    def wrong(inputs: dict[str, Any], backend: str, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        found = right(inputs, backend, device, dtype)
        return found if dtype == torch.float64 else {**found, spoilt: 1.01 * found[spoilt]}

    monkeypatch.setattr(scans, "run_scan", wrong)
    with pytest.raises(CheckError, match=rf"reference: {message} are .* off"):
        scans.compare_backend(CPU, "reference")


def test_two_runs_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scans.run_scan
    runs = iter(range(1000))

    def restless(inputs: dict[str, Any], *arguments: Any) -> dict[str, Tensor]:
        found = right(inputs, *arguments)
        return {**found, "dB": found["dB"] + 1e-9 * next(runs)}

    monkeypatch.setattr(scans, "run_scan", restless)
    with pytest.raises(CheckError, match="two runs differ"):
        scans.compare_backend(CPU, "reference")


def test_nothing_to_check() -> None:
    with pytest.raises(NothingToCheckError):
        scans.check_memory(CPU)

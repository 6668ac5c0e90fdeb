"""The speed item runs and its figures belong together; none is asserted."""

import pytest
import torch

from tools.gpu import speed
from tools.gpu.setting import CheckSetting


def test_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = CheckSetting(torch.device("cpu"))
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(
        speed, "measure_scans", lambda *_: [{"backend": "triton", "ms": 2.0}, {"backend": "x", "ms": 1.0}]
    )
    figures = speed.measure_speed(cpu)
    assert figures["fastest scan"] == "x" and figures["copy GB/s"] > 0
    assert {row["stage"] for row in figures["stages"]} >= {"trunk, query", "decoder", "ensemble"}
    assert all(row["GFLOP"] > 0 and row["ms"] > 0 for row in figures["stages"] if row["stage"] != "ensemble")
    assert [row["episode"] for row in figures["episodes"]] == ["cold", "cached features", "known support"]
    assert [row["size"] for row in figures["sizes"]] == [33, 65]
    assert figures["training steps"][0]["episodes/s"] > 0

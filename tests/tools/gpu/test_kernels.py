"""The kernels on paper: the counts against a count by hand, and what the compiler says of them."""

import pytest

from tools.gpu import kernels
from tools.gpu.setting import CheckError, CheckSetting


def test_bytes_and_exponentials() -> None:
    """One token of 2 channels and 4 states, chunks of 2 tokens: a chunk's states are 2 * 4 / 2 numbers a token."""
    size, exponentials = kernels.Shape(1, 2, 4, 2).forward()
    maps = 4 * (2 + 2 + 2) + 4 * 4 + 4 * 4  # delta, the next token's, u; B; gain
    compose = 2 * 4 * 4  # gain in, state out
    outputs = 4 * (2 + 2 + 2) + 2 * 4 * 4 + 4 * 4  # delta, u, y; B and C; state
    assert size == maps + compose + outputs + 4 * 2  # and y once more, summed over directions
    assert exponentials == 2 * (2 * 4 + 6)
    many = kernels.Shape(1000, 2, 4, 2)
    assert many.forward() == (1000 * size, 1000 * exponentials)
    assert many.backward()[0] > many.forward()[0] > many.mamba_ssm()[0] / 2


def test_limits() -> None:
    rows = {row["scan"]: row for row in kernels.predict(kernels.Shape(2**15, 512, 16, 16))}
    for row in rows.values():
        assert row["V100 ms"] > row["A100 ms"] > row["H100 ms"] > 0
        assert row["A100 ms"] >= 2**15 * row["bytes per token"] / 1.555e12 * 1e3 * 0.999


def test_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "ARCHITECTURES", (80,))
    monkeypatch.setattr(kernels, "KERNELS", ("_outputs",))
    (row,) = kernels.check_kernels(CheckSetting(None))["kernels"]
    assert row["kernel"] == "outputs" and 16 < row["registers"] < 255 and row["spilt bytes"] == 0
    monkeypatch.setattr(kernels, "compile_kernel", lambda *_: {**row, "spilt bytes": 8})
    with pytest.raises(CheckError, match="spilt by outputs on sm_80"):
        kernels.check_kernels(CheckSetting(None))

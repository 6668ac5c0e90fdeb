"""The table of the tests on a device."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests import report


def outcome(state: str, reason: Any = None, **figures: float) -> Any:
    facts = {"nodeid": f"tests/x.py::{state}", "outcome": state, "duration": 1.25, "longrepr": reason}
    flags = {name: name == state for name in ("passed", "failed", "skipped")}
    return SimpleNamespace(**facts, **flags, user_properties=list(figures.items()))


def test_the_table_and_its_file(tmp_path: Path) -> None:
    outcomes = {
        "passed": [outcome("passed", error=1.5e-7)],
        "failed": [outcome("failed", "a traceback\nAssertionError: 3 is not 4")],
        "skipped": [outcome("skipped", ("tests/x.py", 3, "Skipped: PyTorch sees no accelerator"))],
    }
    lines: list[str] = []
    reporter = SimpleNamespace(
        getreports=lambda state: outcomes.get(state, []), section=lines.append, write_line=lines.append
    )
    config: Any = SimpleNamespace(getoption=lambda name: tmp_path / "gpu" / "report.json")
    report.pytest_terminal_summary(reporter, config)
    content = json.loads((tmp_path / "gpu" / "report.json").read_text())
    assert content["machine"]["torch"] and "mamba_ssm" in content["machine"]
    assert [test["state"] for test in content["tests"]] == ["passed", "failed", "skipped"]
    assert content["tests"][0]["figures"] == {"error": 1.5e-7} and "error 1.5e-07" in lines[1]
    assert [test["reason"] for test in content["tests"][1:]] == [
        "AssertionError: 3 is not 4",
        "PyTorch sees no accelerator",
    ]

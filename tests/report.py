"""A plugin of pytest, `-p tests.report --report FILE`: one table of the tests with their figures, also as JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from util.files import atomic_write


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the file that the table is written to."""
    parser.addoption("--report", type=Path, metavar="FILE", help="write the tests, their figures and the machine here")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table and write it."""
    path: Path | None = config.getoption("report")
    if path is None:
        return
    from tools.benchmark import machine  # whose imports take seconds

    rows = [
        describe(report)
        for state in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.getreports(state)
    ]
    atomic_write(path, json.dumps({"machine": machine(), "tests": rows}, indent=1) + "\n")
    terminalreporter.section(f"report: {path}")
    for row in rows:
        figures = " ".join(f"{name} {value:.3g}" for name, value in row["figures"].items())
        line = f"{row['state']:<8}{row['seconds']:7.1f} s  {row['test']}  {figures}{row['reason']}"
        terminalreporter.write_line(line)


def describe(report: Any) -> dict[str, Any]:
    """A test: its outcome, the seconds it took, what it recorded by `record_property`, and why it was not passed."""
    reason = ""
    if report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        reason = str(report.longrepr).strip().splitlines()[-1]
    return {
        **{"test": report.nodeid, "state": report.outcome, "seconds": report.duration},
        **{"figures": dict(report.user_properties), "reason": reason},
    }

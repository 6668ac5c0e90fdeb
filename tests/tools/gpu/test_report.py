"""The report of a machine, whatever became of the items."""

import json
from pathlib import Path

from tools.gpu.report import ItemOutcome, describe_machine, write_report

ERRORS = [{"shape": "1x4", "outputs": 1.5e-7}, {"shape": "2x3", "outputs": 2e-7}]
OUTCOMES = [
    ItemOutcome(
        "scan-triton",
        "passed",
        1.25,
        "",
        {"errors": [{"shape": "1x4", "outputs": 1.5e-7}, {"shape": "2x3", "outputs": 2e-7}]},
    ),
    ItemOutcome("scores", "failed", 3.0, "CheckError: scores | of fp16", {"stderr": ["a", "b"]}),
    ItemOutcome("scan-memory", "skipped", 0.1, "compute-sanitizer is not installed", {}),
]


def test_report(tmp_path: Path) -> None:
    write_report(tmp_path, {"device": "cpu", "triton": None}, OUTCOMES)
    content = json.loads((tmp_path / "report.json").read_text())
    assert [item["state"] for item in content["items"]] == ["passed", "failed", "skipped"]
    assert content["items"][0]["figures"]["errors"][1]["outputs"] == 2e-7
    text = (tmp_path / "report.md").read_text()
    assert "## scan-triton: errors" in text and "1.5e-07" in text
    assert "scores \\| of fp16" in text and "compute-sanitizer is not installed" in text


def test_machine() -> None:
    machine = describe_machine("cpu")
    assert machine["torch"] and machine["numpy"] and "mamba-ssm" in machine

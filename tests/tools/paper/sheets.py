"""Tables of the paper as cells."""

from pathlib import Path
from typing import Any

from tools.paper.runs import read_runs
from tools.paper.tables import Cell, Sheet, Sources
from tools.paper.tables import fill as fill_table

PASCAL = "config/pascal/pascal_split{}_resnet50_manet.yaml"


def cells(sheet: Sheet, name: str) -> dict[str, Cell]:
    return dict(zip(sheet.columns, sheet.rows[name], strict=True))


def fill(number: int, place: Path, *more: Any) -> Sheet:
    return fill_table(number, Sources(read_runs(place / "exp"), *more))

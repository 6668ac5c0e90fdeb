"""The paper's tables with this project's numbers beside the published ones: `python -m tools.report [TABLE ...]`.

Reads the result files below exp/, prints Markdown and writes Markdown, LaTeX and CSV. What has not been run is listed
with the commands that would run it; `sh tools/reproduce.sh TABLE` does.
"""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.paper.benchmarks import benchmark_table
from tools.paper.paired import Tests, comparable, comparison_table, episodes_file, tests_in
from tools.paper.published import SOURCE
from tools.paper.runs import read_json, read_runs
from tools.paper.table import Table
from tools.paper.tables import TABLES, Cell, Sheet, Sources
from util.config import load_config
from util.errors import UserError, run_main
from util.files import atomic_write

BENCHMARKS = "benchmarks"
INTERVALS = "mean IoU of the episodes and its 95 % interval"
INTERVAL_LEGEND = "Bootstrap over the episodes of a test; limits averaged over training seeds where there are several."
LEGEND = "Cells: this project's figure (± standard deviation over training seeds) / published / difference."


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fill the paper's tables with the runs that have been made.")
    parser.add_argument(
        "tables",
        nargs="*",
        type=lambda word: word if word == BENCHMARKS else int(word),
        metavar="TABLE",
        help="1 to 9, 0: base learners; default: all; `benchmarks`: one table over all benchmarks",
    )
    parser.add_argument("--exp", type=Path, help="folder of the runs; default: that of --config, or exp")
    parser.add_argument("--out", type=Path, default=Path("exp/report"), help="folder for the tables")
    parser.add_argument("--config", help="for Tables 3 to 8: another data set and network than the paper's")
    parser.add_argument("--splits", nargs="+", type=int, default=[], help="these folds only; default: all")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[], help="manual_seed of the trainings; default: any one"
    )
    parser.add_argument("--commands", action="store_true", help="only print the commands for what is missing")
    arguments = parser.parse_args()
    if arguments.exp is None:
        arguments.exp = Path(load_config(arguments.config).exp if arguments.config else "exp")
    if unknown := set(arguments.tables) - {BENCHMARKS} - TABLES.keys():
        raise UserError(f"there is no Table {min(unknown)}: the paper's tables are 1 to 9")
    return arguments


def find_benchmark(exp: Path) -> dict[str, Any]:
    """The rows of the benchmark.json below a folder that measured in full, of each the newest."""
    rows: dict[str, Any] = {}
    for path in sorted(exp.rglob("benchmark.json"), key=lambda path: path.stat().st_mtime):
        content = read_json(path)
        if content.get("kind") == "benchmark" and not content.get("quick", False):
            rows |= content
    return rows


def cell_text(cell: Cell) -> str:
    """A cell for people."""
    own = "-" if cell.own is None else f"{cell.own:.1f}"
    own += "" if cell.spread is None else f" ± {cell.spread:.1f}"
    if cell.paper is None:
        return own
    return f"{own} / {cell.paper:.1f}" + ("" if cell.difference is None else f" / {cell.difference:+.1f}")


def as_table(sheet: Sheet) -> Table:
    """The sheet as text, with its notes."""
    rows: list[Sequence[str]] = [(row.name, *map(cell_text, row.cells)) for row in sheet.rows]
    return Table(sheet.title, ("", *sheet.columns), rows, [LEGEND, f"Published: {SOURCE}", *sheet.notes])


def interval_table(sheet: Sheet) -> Table | None:
    """How sure the figures of the rows with runs are, as far as it depends on the episodes; None without runs."""
    shown = {name: folds for name, folds in sheet.runs.items() if any(folds.values())}
    if not shown:
        return None
    rows: list[Sequence[str]] = []
    for name, folds in shown.items():
        found = folds.values()
        texts = (f"{x.episode_iou:.1f} [{x.interval[0]:.1f}, {x.interval[1]:.1f}]" if x else "-" for x in found)
        rows.append((name, *texts))
    columns = [f"fold {split}" for split in next(iter(shown.values()))]
    return Table(f"{sheet.title.split(':')[0]}: {INTERVALS}", ("", *columns), rows, [INTERVAL_LEGEND])


def paired_table(sheet: Sheet) -> Table | None:
    """How far the last row with runs is ahead of those above on the same episodes; None without two such rows."""
    methods: dict[str, Tests] = {}
    for name, folds in reversed(sheet.runs.items()):
        paths = [path for found in folds.values() if found for path in found.paths if episodes_file(path).is_file()]
        tests = tests_in(paths)
        if tests and all(comparable(first, tests) for first in [*methods.values()][:1]):
            methods[name] = tests
    title = f"{sheet.title.split(':')[0]}: differences on the same episodes"
    return comparison_table(title, methods) if len(methods) > 1 else None


def tables_of(sheet: Sheet) -> list[Table]:
    """The table, how sure its figures are, and how sure its differences are, as far as there are runs."""
    return [table for table in (as_table(sheet), interval_table(sheet), paired_table(sheet)) if table]


def as_csv(sheets: Mapping[int, Sheet]) -> str:
    """A line per cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "row", "column", "own", "standard_deviation", "published", "difference"))
    for number, sheet in sheets.items():
        for row in sheet.rows:
            for column, cell in zip(sheet.columns, row.cells, strict=True):
                writer.writerow((number, row.name, column, cell.own, cell.spread, cell.paper, cell.difference))
    return text.getvalue()


def as_markdown(sheet: Sheet) -> str:
    """The table, its intervals and the commands for what it lacks."""
    text = "\n".join(table.markdown() for table in tables_of(sheet))
    if sheet.missing:
        text += "\nMissing; these commands would make it:\n\n```sh\n" + "\n".join(sheet.missing) + "\n```\n"
    return text


def main() -> None:
    """Read, fill, write, print."""
    arguments = parse_arguments()
    if BENCHMARKS in arguments.tables:
        table = benchmark_table(arguments.exp)
        atomic_write(arguments.out / "benchmarks.md", table.markdown())
        atomic_write(arguments.out / "benchmarks.tex", table.latex())
        print(table.markdown())
        return
    runs, exp = read_runs(arguments.exp), arguments.exp
    sources = Sources(runs, find_benchmark(arguments.exp), arguments.config, arguments.splits, arguments.seeds, exp)
    sheets = {number: TABLES[number](sources) for number in arguments.tables or TABLES}
    if arguments.commands:
        missing = dict.fromkeys(command for sheet in sheets.values() for command in sheet.missing)
        print("".join(f"{command}\n" for command in missing), end="")
        return
    for number, sheet in sheets.items():
        atomic_write(arguments.out / f"table{number}.md", as_markdown(sheet))
        atomic_write(arguments.out / f"table{number}.tex", "\n".join(table.latex() for table in tables_of(sheet)))
        atomic_write(arguments.out / f"table{number}.csv", as_csv({number: sheet}))
    print("\n".join(map(as_markdown, sheets.values())))


if __name__ == "__main__":
    run_main(main)

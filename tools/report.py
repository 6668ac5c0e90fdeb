"""The paper's tables with this project's numbers beside the published ones: `python -m tools.report [TABLE ...]`.

Reads the result files below exp/, prints Markdown and writes Markdown, LaTeX and CSV. What has not been run is listed
with the commands that would run it; `sh tools/reproduce.sh TABLE` does.
"""

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from engine.results import read_json
from tools.paper.benchmarks import benchmark_table
from tools.paper.paired import Tests, comparable, comparison_table, tests_of
from tools.paper.published import SOURCE
from tools.paper.runs import Run, read_runs
from tools.paper.table import Table, csv_text
from tools.paper.tables import TABLES, Sheet, Sources, average, fill
from util.arguments import Parser
from util.config import load_config
from util.errors import UserError, run_main
from util.failures import explain_errors
from util.files import atomic_write

BENCHMARKS = "benchmarks"
INTERVAL_LEGEND = (
    "Bootstrap over the distinct query images of a test, whose number stands behind the interval (over episodes where "
    "none does: a result of a former version); limits averaged over training seeds where there are several."
)
LEGEND = "Cells: this project's metric (± standard deviation over training seeds) / published / difference."


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Fill the paper's tables with the runs that have been made.")
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
    seeds = "manual_seed of the trainings; default: any one"
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help=seeds)
    parser.add_argument("--commands", action="store_true", help="only print the commands for what is missing")
    arguments = parser.parse_args()
    if arguments.exp is None:
        arguments.exp = Path(load_config(arguments.config).exp if arguments.config else "exp")
    if unknown := set(arguments.tables) - {BENCHMARKS, *TABLES}:
        raise UserError(f"there is no Table {min(unknown)}: the paper's tables are 1 to 9")
    return arguments


def find_benchmark(exp: Path) -> dict[str, Any]:
    """The rows of the benchmark.json below a folder that measured in full, of each the newest."""
    rows: dict[str, Any] = {}
    for path in sorted(exp.rglob("benchmark.json"), key=lambda path: path.stat().st_mtime):
        content = read_json(path, TypeAdapter(dict[str, Any]))
        rows |= content if content.get("kind") == "benchmark" and not content.get("quick") else {}
    return rows


def interval_text(runs: Sequence[Run]) -> str:
    """The mean over episodes, its interval, and how many query images that rests on."""
    if not runs:
        return "-"
    limits = [run.metrics.interval for run in runs if run.metrics.interval]
    ends = [f"{fmean(100 * limit for limit in column):.1f}" for column in zip(*limits, strict=True)]
    images = "/".join(str(count) for count in dict.fromkeys(run.metrics.query_images for run in runs) if count)
    interval = f" [{', '.join(ends)}]" if ends else ""
    return f"{average(runs, 'mean_episode_iou'):.1f}{interval}" + (f", {images} images" if images else "")


def tables_of(sheet: Sheet) -> list[Table]:
    """The table, how sure its metrics are, and how sure its differences are, as far as there are runs."""
    rows: list[Sequence[str]] = [(name, *(cell.text() for cell in cells)) for name, cells in sheet.rows.items()]
    notes = [LEGEND, f"Published: {SOURCE}", *sheet.notes]
    whole = Table(sheet.title, ("", *sheet.columns), rows, notes)
    return [table for table in (whole, interval_table(sheet), paired_table(sheet)) if table]


def interval_table(sheet: Sheet) -> Table | None:
    """How sure the metrics of the rows with runs are, as far as it depends on the query images; None without runs."""
    shown = {name: folds for name, folds in sheet.runs.items() if any(folds.values())}
    if not shown:
        return None
    columns = [f"fold {split}" for split in next(iter(shown.values()))]
    rows: list[Sequence[str]] = [(name, *map(interval_text, folds.values())) for name, folds in shown.items()]
    title = f"{sheet.title.split(':')[0]}: mean IoU of the episodes and its 95 % interval"
    return Table(title, ("", *columns), rows, [INTERVAL_LEGEND])


def paired_table(sheet: Sheet) -> Table | None:
    """How far the last row with runs is ahead of those above on the same episodes; None without two such rows."""
    methods: dict[str, Tests] = {}
    for name, folds in reversed(sheet.runs.items()):
        tests = tests_of(run.result for run in chain(*folds.values()) if run.result.episodes_path.is_file())
        if tests and all(comparable(first, tests) for first in [*methods.values()][:1]):
            methods[name] = tests
    title = f"{sheet.title.split(':')[0]}: differences on the same episodes"
    return comparison_table(title, methods) if len(methods) > 1 else None


def as_csv(number: int, sheet: Sheet) -> str:
    """A line per cell."""
    columns = ("table", "row", "column", "own", "standard_deviation", "published", "difference")
    cells = [(name, pair) for name, row in sheet.rows.items() for pair in zip(sheet.columns, row, strict=True)]
    return csv_text(columns, [(number, name, column, *cell, cell.difference) for name, (column, cell) in cells])


def write(folder: Path, name: str, tables: Sequence[Table], more: str = "") -> str:
    """Write tables as Markdown and LaTeX; returns the Markdown."""
    text = "\n".join(table.markdown() for table in tables) + more
    atomic_write(folder / f"{name}.md", text)
    atomic_write(folder / f"{name}.tex", "\n".join(table.latex() for table in tables))
    return text


def report(arguments: argparse.Namespace) -> None:
    """Print the tables, or the commands for what they lack, and write the tables."""
    if BENCHMARKS in arguments.tables:
        print(write(arguments.out, BENCHMARKS, [benchmark_table(arguments.exp)]))
        return
    runs, exp = read_runs(arguments.exp, arguments.seeds), arguments.exp
    sources = Sources(runs, find_benchmark(exp), arguments.config, arguments.splits, arguments.seeds, exp)
    sheets = {number: fill(number, sources) for number in arguments.tables or TABLES}
    if arguments.commands:
        missing = dict.fromkeys(chain(*(sheet.missing for sheet in sheets.values())))
        print("".join(f"{command}\n" for command in missing), end="")
        return
    for number, sheet in sheets.items():
        lines = ["\nMissing; these commands would make it:\n", "```sh", *sheet.missing, "```\n"]
        text = write(arguments.out, f"table{number}", tables_of(sheet), "\n".join(lines) if sheet.missing else "")
        atomic_write(arguments.out / f"table{number}.csv", as_csv(number, sheet))
        print(text)


def main() -> None:
    """Read, fill, write, print."""
    with explain_errors("give another --out"):
        report(parse_arguments())


if __name__ == "__main__":
    run_main(main)

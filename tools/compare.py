"""Methods on the same episodes: `python -m tools.compare A B [C ...] [--names NAME ...]`.

Each is a result of `test.py` or a folder with the results of several folds and trainings. Prints how far the first is
ahead of each other one, with 95 % intervals, on all and on hard episodes, and which is better how often in every class.
"""

from pathlib import Path

from tools.paper.history import short_names
from tools.paper.paired import comparison_table, read_tests, wins_table
from util.arguments import Parser
from util.errors import UserError, run_main
from util.failures import explain_errors
from util.files import atomic_write


def main() -> None:
    """Read, compare, print."""
    parser = Parser(prog="python -m tools.compare", description="Compare tests on the same episodes.")
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULT", help="result_test_*.json, or a folder of some"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the methods, in the same order")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the Markdown there too")
    arguments = parser.parse_args()
    names = arguments.names or short_names(arguments.results)
    if len(arguments.results) < 2 or len(set(names)) != len(arguments.results):
        raise UserError(f"--names {' '.join(names)}: should be a name of its own for each of two or more results")
    methods = {name: read_tests(path) for name, path in zip(names, arguments.results, strict=True)}
    lead, *others = names
    tables = [comparison_table(f"{lead} against others", methods)]
    for name in others:
        tables.append(wins_table((lead, name), methods[lead], methods[name]))
    text = "\n".join(table.markdown() for table in tables)
    print(text)
    if arguments.out:
        with explain_errors("give another --out"):
            atomic_write(arguments.out, text)


if __name__ == "__main__":
    run_main(main)

"""Tables as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tabulate


@dataclass
class Table:
    """Rows of text under column headings; the first column names the row. Notes stand below."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """GitHub's Markdown, readable as it is: columns are padded."""
        columns, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, *self.rows)]
        notes = [f"- {note}" for note in self.notes]
        lines = [f"## {self.title}", "", _body(columns, rows, "pipe"), *([""] if notes else []), *notes]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A `table` for the package booktabs."""
        notes = [rf"\par\footnotesize {latex_text(note)}" for note in self.notes]
        top = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(self.title)}}}"]
        return "\n".join([*top, _body(self.columns, self.rows, "latex_booktabs"), *notes, r"\end{table}"]) + "\n"


def _body(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    alignment = ("left", *["right"] * (len(columns) - 1)) if rows else None
    return tabulate.tabulate(rows, columns, tablefmt=style, disable_numparse=True, colalign=alignment)


def latex_text(text: str) -> str:
    """Text with the signs that mean something to LaTeX taken for themselves."""
    return "".join(tabulate.LATEX_ESCAPE_RULES.get(sign, sign) for sign in text)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as comma-separated values; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()

"""Tables as Markdown and LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass, field

LATEX_SIGNS = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}"}
LATEX_SIGNS |= {"^": r"\textasciicircum{}", "±": r"$\pm$"}


@dataclass
class Table:
    """Rows of text under column headings; the first column names the row. Notes stand below."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """GitHub's Markdown, readable as it is: columns are padded."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["| " + " | ".join(_pad(row, widths)) + " |" for row in cells]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines.insert(1, "| " + " | ".join(rule) + " |")
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.title}", "", *lines, *([""] if notes else []), *notes]) + "\n"

    def latex(self) -> str:
        """A `table` for the package booktabs."""
        lines = [" & ".join(map(latex_text, row)) + r" \\" for row in (self.columns, *self.rows)]
        notes = [rf"\par\footnotesize {latex_text(note)}" for note in self.notes]
        columns = "l" + "r" * (len(self.columns) - 1)
        top, bottom = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(self.title)}}}"], [r"\end{table}"]
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        return "\n".join([*top, *body, r"\end{tabular}", *notes, *bottom]) + "\n"


def latex_text(text: str) -> str:
    """Text with the signs that mean something to LaTeX taken for themselves."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]

"""Tables as Markdown and LaTeX."""

from tools.paper.table import Table, latex_text

TABLE = Table("Folds", ("", "mIoU", "a|b"), [("HMNet", "70.4", "±1"), ("BAM & co", "67.8", "")], ["100 % of_it"])


def test_markdown_is_padded_and_escaped() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "## Folds" and lines[-1] == "- 100 % of_it"
    rows = lines[2:6]
    assert len({len(row) for row in rows}) == 1 and rows[0].endswith("| a\\|b |")
    assert set(rows[1]) == set("|-: ") and rows[2].startswith("| HMNet    | 70.4 |")


def test_latex() -> None:
    text = TABLE.latex()
    assert r"BAM \& co & 67.8 &  \\" in text and r"$\pm$1" in text and r"100 \% of\_it" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_latex_signs() -> None:
    assert latex_text("a_b^c\\{~}") == r"a\_b\textasciicircum{}c\textbackslash{}\{\textasciitilde{}\}"

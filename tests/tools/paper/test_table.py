"""Tables as Markdown, LaTeX and CSV."""

from tools.paper.table import Table, csv_text, latex_text

TABLE = Table("Folds", ("", "mIoU", "a|b"), [("HMNet", "70.4", "±1"), ("BAM & co", "67.8", "")], ["100 % of_it"])


def test_markdown_is_padded_and_escaped() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "## Folds" and lines[-1] == "- 100 % of_it"
    rows = lines[2:6]
    assert len({len(row) for row in rows}) == 1 and rows[0].endswith("a\\|b |")
    assert set(rows[1]) == set("|-:") and rows[2].startswith("| HMNet ") and rows[2].split("|")[2].strip() == "70.4"


def test_latex() -> None:
    text = TABLE.latex()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert r"BAM \& co & 67.8 & \\" in lines and r"HMNet & 70.4 & ±1 \\" in lines and r"100 \% of\_it" in lines[-2]
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_a_table_without_rows_and_signs_of_latex() -> None:
    assert Table("Nothing", ("", "mIoU")).markdown().splitlines()[2].split() == ["|", "|", "mIoU", "|"]
    assert latex_text("a_b^c\\{~}") == r"a\_b\^{}c\textbackslash{}\{\textasciitilde{}\}"


def test_comma_separated_values() -> None:
    assert csv_text(("a", "b"), [(1, None), ("x,y", 0.5)]) == 'a,b\n1,\n"x,y",0.5\n'

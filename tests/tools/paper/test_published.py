"""The published numbers are consistent in themselves: means over folds, as far as the paper's rounding goes."""

from statistics import fmean, stdev

import pytest

from tools.paper.published import published

ROWS = [(number, row) for number, table in published("tables").items() for row in table["rows"] if number != 9]


def test_means_over_folds() -> None:
    whole = [row for number, row in ROWS if number != 4 and "std" not in row["name"] and None not in row["paper"][:4]]
    assert len(whole) > 60
    for row in whole:
        assert row["paper"][4] == pytest.approx(fmean(row["paper"][:4]), abs=0.11), row


@pytest.mark.parametrize("number", [6, 7])
@pytest.mark.parametrize("method", ["HDMNet", "HMNet"])
def test_statistics_over_rows(number: int, method: str) -> None:
    rows = {
        row["name"].split(", ")[1]: row["paper"]
        for of, row in ROWS
        if (of, row["name"].split(",")[0]) == (number, method)
    }
    summaries = {name: rows.pop(name) for name in ("mean", "std") if name in rows}
    columns = list(zip(*rows.values(), strict=True))
    assert len(rows) > 3 and "mean" in summaries
    for name, function in (("mean", fmean), ("std", stdev)):
        for value, column in zip(summaries.get(name, ()), columns, strict=name in summaries):
            assert value is None or value == pytest.approx(function(column), abs=0.11)


def test_table_8_has_both_means() -> None:
    rows = {row["name"]: row["paper"] for number, row in ROWS if number == 8}
    folds, printed = rows["HMNet"], rows["HMNet, mean as printed"]
    assert (folds[4], printed) == (pytest.approx(fmean(folds[:4]), abs=0.051), [None, None, None, None, 68.8])


def test_unknown_table() -> None:
    with pytest.raises(KeyError):
        published("table10")

"""The published numbers are consistent in themselves: means over folds, as far as the paper's rounding goes."""

from statistics import fmean, stdev

import pytest

from tools.paper.published import published


@pytest.mark.parametrize("table", ["table1_pascal", "table2_coco"])
def test_means_over_folds(table: str) -> None:
    rows = [row for methods in published(table).values() for row in methods.values()]
    assert len(rows) >= 8
    for row in rows:
        for shots, (*folds, mean, _) in row.items():
            assert shots in (1, 5) and mean == pytest.approx(fmean(folds), abs=0.11)


def test_components() -> None:
    rows = published("table3_components")
    assert len(rows) == 8
    assert all(row["miou"][4] == pytest.approx(fmean(row["miou"][:4]), abs=0.11) for row in rows)


@pytest.mark.parametrize("table", ["table6_seeds", "table7_episodes"])
@pytest.mark.parametrize("method", ["HDMNet", "HMNet"])
def test_statistics_over_rows(table: str, method: str) -> None:
    rows = published(table)[method]
    columns = list(zip(*(row for key, row in rows.items() if isinstance(key, int)), strict=True))
    for name, function in (("mean", fmean), ("std", stdev)):
        for value, column in zip(rows.get(name, ()), columns, strict=name in rows):
            assert value is None or value == pytest.approx(function(column), abs=0.11)
    for key, row in rows.items():
        assert not isinstance(key, int) or row[4] == pytest.approx(fmean(row[:4]), abs=0.11)


def test_table_8_has_both_means() -> None:
    rows = published("table8_fusion")
    folds, printed = rows["HMNet"], rows["HMNet, mean as printed"]
    assert (folds[4], printed) == (pytest.approx(fmean(folds[:4]), abs=0.051), [None, None, None, None, 68.8])


def test_unknown_table() -> None:
    with pytest.raises(KeyError):
        published("table10")

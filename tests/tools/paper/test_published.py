"""The published numbers are consistent in themselves: means over folds, as far as the paper's rounding goes."""

from statistics import fmean

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


def test_unknown_table() -> None:
    with pytest.raises(KeyError):
        published("table10")

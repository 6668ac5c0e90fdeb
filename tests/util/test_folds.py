"""The classes of folds against the rule said in other words."""

import pytest

from tests.toy import generator
from util.errors import UserError
from util.folds import fold_classes


def test_contiguous_groups() -> None:
    rng = generator()
    for _ in range(20):
        folds = int(rng.integers(2, 7))
        classes = int(rng.integers(folds, 40))
        groups = [fold_classes("mine", split, classes, folds, use_split_coco=True) for split in range(folds)]
        assert [c for _, novel in groups for c in novel] == list(range(1, classes + 1))
        sizes = [len(novel) for _, novel in groups]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
        assert all(sorted(base + novel) == list(range(1, classes + 1)) for base, novel in groups)


def test_published_folds() -> None:
    for split in range(4):
        assert fold_classes("pascal", split, 20, 4, True)[1] == [5 * split + i for i in range(1, 6)]
        base, novel = fold_classes("coco", split, 80, 4, True)
        assert novel == [split + 1 + 4 * i for i in range(20)] and sorted(base + novel) == list(range(1, 81))
        assert fold_classes("coco", split, 80, 4, False)[1] == list(range(20 * split + 1, 20 * split + 21))
    assert fold_classes("pascal", 4, 20, 4, True) == (list(range(1, 21)), [])


@pytest.mark.parametrize("split", [-1, 3])
def test_no_such_fold(split: int) -> None:
    with pytest.raises(UserError, match=f"split: {split}, with 3 folds of 9 classes; choose 0 to 2"):
        fold_classes("mine", split, 9, 3, False)

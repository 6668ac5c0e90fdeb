"""Which classes of a data set are novel in a fold, and which are base classes."""

from util.errors import UserError

WITH_ALL = ("pascal", "mixed")  # data sets that have a fold more, in which no class is novel, for tests on other sets


def fold_classes(
    data_set: str, split: int, num_classes: int, folds: int, use_split_coco: bool
) -> tuple[list[int], list[int]]:
    """Base and novel classes of a fold, ascending: contiguous groups, or with use_split_coco every folds-th COCO class.

    UserError for a fold that does not exist.
    """
    if split == folds and data_set in WITH_ALL:
        return list(range(1, num_classes + 1)), []
    if not 0 <= split < folds <= num_classes:
        raise UserError(f"split: {split}, with {folds} folds of {num_classes} classes; choose 0 to {folds - 1}")
    if data_set == "coco" and use_split_coco:
        novel = list(range(split + 1, num_classes + 1, folds))
    else:
        size, larger = divmod(num_classes, folds)  # the first `larger` groups have one class more
        start = split * size + min(split, larger)
        novel = list(range(start + 1, start + 1 + size + (split < larger)))
    return [class_id for class_id in range(1, num_classes + 1) if class_id not in novel], novel

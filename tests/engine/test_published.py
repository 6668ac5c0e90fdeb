from typing import Any

import pytest

from engine.published import base_miou


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"split": 2}, 69.19),
        ({"split": 3, "vgg": True}, 69.95),
        ({"data_set": "coco", "split": 1}, 49.41),
        ({"data_set": "coco", "split": 1, "use_split_coco": False}, None),  # other folds than the published ones
        ({"split": 4}, None),  # all classes
        ({"layers": 101}, None),
        ({"data_set": "mine", "num_classes": 8}, None),
    ],
)
def test_published_figures_of_the_base_learner(make_config: Any, keys: dict[str, object], expected: float) -> None:
    assert base_miou(make_config(**keys)) == expected

"""What is worked out from the keys: names and places of files, numbers of classes, and keys by topic."""

from collections.abc import Callable

import pytest

from util.config import Config
from util.schema import keys_of


def test_places(make_config: Callable[..., Config]) -> None:
    cfg = make_config(data_set="mine", num_classes=7, folds=3, split=1, vgg=True, exp="runs", initmodel="w", shot=5)
    assert str(cfg.experiment_dir) == "runs/mine/HMNet/split1/vgg"
    assert str(cfg.best_weights(5)) == "runs/mine/HMNet/split1/vgg/snapshot/best_5shot.pth"
    assert str(cfg.base_learner_path) == "w/PSPNet/mine/split1/vgg/best.pth"
    assert (cfg.novel_class_count, cfg.base_class_count) == (2, 5)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "hmnet"),
        ({"self_blocks": False}, "hmnet"),
        ({"self_blocks": False, "srm": "none", "qim": "none"}, "concat"),
        ({"srm": "none", "qim": "none"}, "hmnet"),
        ({"self_blocks": False, "srm": "none", "qim": "none", "fusion": "cross_attention"}, "cross_attention"),
    ],
)
def test_hmnet_without_components_is_the_concatenation(
    make_config: Callable[..., Config], keys: dict[str, object], name: str
) -> None:
    assert make_config(**keys).fusion_name == name


def test_loader_workers(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("util.schema.processor_count", lambda: 2)
    assert make_config(loader_workers=3).loader_worker_count == 3
    assert [make_config(workers=workers).loader_worker_count for workers in (1, 8)] == [1, 2]


def test_every_key_has_one_topic_at_most() -> None:
    topics = [keys_of(topic) for topic in ("network", "recipe", "protocol")]
    together = [key for keys in topics for key in keys]
    assert len(together) == len(set(together))

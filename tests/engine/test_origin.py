"""What checkpoints were trained on: told by themselves or by their path."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.origin import check_origin, training_origin
from util.errors import UserError

RELEASED = Path("exp/pascal/HMNet/split1/resnet50/snapshot/train_epoch_210_0.7216.pth")


def test_a_checkpoint_tells(make_config: Any) -> None:
    cfg = make_config(split=1, shot=5)
    origin = training_origin(cfg)
    assert (origin["data_set"], origin["split"], origin["shot"], len(origin["classes"])) == ("pascal", 1, 5, 15)
    assert "aeroplane" in origin["classes"] and "bus" not in origin["classes"]  # classes 6 to 10 are novel
    assert check_origin(Path("weights.pth"), {"trained_on": origin}, cfg) is None
    one_shot = training_origin(make_config(split=1))
    assert (
        check_origin(Path("weights.pth"), {"trained_on": one_shot}, make_config(split=1, shot=5, trained_shot=1))
        is None
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": 2}, "split 1, not 2; classes "),
        ({"split": 1, "shot": 5}, "shot 1, not 5"),
        ({"split": 1, "data_set": "coco"}, "data_set 'pascal', not 'coco'; classes "),
    ],
)
def test_another_training_is_refused_unless_allowed(make_config: Any, keys: dict[str, Any], message: str) -> None:
    content = {"trained_on": training_origin(make_config(split=1))}
    with pytest.raises(UserError, match=rf"\Aw\.pth: trained on {message}.*allow_other_split True`\Z"):
        check_origin(Path("w.pth"), content, make_config(**keys))
    note = check_origin(Path("w.pth"), content, make_config(**keys, allow_other_split=True))
    assert note and note.startswith(f"w.pth: tested although trained on {message}")


def test_released_checkpoints_are_judged_by_their_path(make_config: Any, tmp_path: Path) -> None:
    note = check_origin(RELEASED, {"state_dict": {}}, make_config(split=1))
    assert note and note.endswith("does not say what it was trained on; by its path it is pascal split 1")
    for name, keys, message in [
        (RELEASED, {"split": 0}, "split 1, not 0"),
        (RELEASED, {"split": 1, "shot": 5}, "shot 1, not 5"),
        (RELEASED.with_name("train5_epoch_8_0.7.pth"), {"split": 1}, "shot 5, not 1"),
        (RELEASED.with_name("best_5shot.pth"), {"split": 1}, "shot 5, not 1"),
        (tmp_path / str(RELEASED).replace("pascal", "coco"), {"split": 1}, "data_set 'coco', not 'pascal'"),
    ]:
        with pytest.raises(UserError, match=f"by its path trained on {message};"):
            check_origin(name, {}, make_config(**keys))
    note = check_origin(Path("/downloads/mine.pth"), {}, make_config())
    assert note == "/downloads/mine.pth: does not say what it was trained on; nor does its path"


def test_shared_weights_tell_by_their_metadata(make_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "pascal/HMNet/split3/resnet50/model.safetensors"  # whatever its path says
    path.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, path, {"data_set": "pascal", "split": "1", "shot": "1"})
    assert check_origin(path, {}, make_config(split=1)) is None
    with pytest.raises(UserError, match=r"model\.safetensors: trained on split 1, not 3;"):
        check_origin(path, {}, make_config(split=3))
    for metadata in (None, {"split": "2"}, {"data_set": "pascal", "split": "one", "shot": "1"}):
        save_file({"a": torch.zeros(1)}, path, metadata)
        assert "by its path it is pascal split 3" in check_origin(path, {}, make_config(split=3))

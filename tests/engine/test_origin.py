"""What checkpoints were trained on: told by themselves or by their path."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.origin import check_origin, checkpoint_config, network_note, training_origin
from engine.paths import run_name, run_tag
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


def test_where_the_config_of_weights_without_one_is_looked_for(make_config: Any, tmp_path: Path) -> None:
    snapshot = tmp_path / "run/snapshot"
    snapshot.mkdir(parents=True)
    for name, split in (("config.yaml", 1), ("config_train5.yaml", 2)):
        (tmp_path / "run" / name).write_text(make_config(split=split).to_yaml())
    splits = {"best_1shot.pth": 1, "best_5shot.pth": 2, "train5_epoch_3_0.5.pth": 2, "train_epoch_3_0.5.pth": 1}
    for weights, split in splits.items():
        torch.save({"state_dict": {}}, snapshot / weights)
        assert checkpoint_config(snapshot / weights).split == split
    torch.save({}, tmp_path / "elsewhere.pth")
    with pytest.raises(UserError, match=r"elsewhere\.pth: holds no config, nor lies config\.yaml beside it; say by"):
        checkpoint_config(tmp_path / "elsewhere.pth")
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        checkpoint_config(tmp_path / "absent.pth")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "best_1shot.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"no pickle")
    with pytest.raises(UserError, match=r"best_1shot\.pth: not a plain tensor archive, or damaged"):
        checkpoint_config(path)


def test_another_network_than_the_trained_one_is_noted(make_config: Any) -> None:
    trained = make_config(blocks=3)
    content = {"config": trained.given()}
    assert network_note(content, trained) is None and network_note({}, trained) is None
    assert network_note(content, make_config(blocks=3, shot=5, amp="bf16")) is None
    assert network_note(content, make_config(blocks=2)) == "the network was trained with blocks 3, now 2"


def test_names_of_runs() -> None:
    assert (run_name(1), run_tag(1), run_name(5), run_tag(5)) == ("train", "", "train5", "_train5")

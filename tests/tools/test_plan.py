"""What a table's trainings amount to, before they begin."""

from pathlib import Path

import pytest

from tests.toy import toy_config, write_toy
from tools.plan import describe, seconds_per_item, trainings
from util.config import load_config
from util.errors import UserError


def test_trainings_by_stage_and_their_length(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", train=5, val=1)
    cfg = toy_config(tmp_path, epochs=3, base_epochs=7)
    path = tmp_path / "toy.yaml"
    path.write_text(cfg.to_yaml())
    lines = [f"train_base.py --config {path} --viz", "-m tools.benchmark", "", f"test.py --config {path}"]
    lines += [f"train.py --config {path} --viz --opts epochs {epochs} resume auto" for epochs in (10, 20)]
    found = trainings(lines)
    assert [(t.stage, t.epochs, t.items) for t in found] == [(1, 7, 35), (2, 10, 50), (2, 20, 100)]
    assert describe(found, lambda training: 3600.0 if training.stage == 1 else 864.0) == (
        "to train: 1 base learners, at most 7 epochs; 35 images, about 35.0 hours in one process on this machine\n"
        "to train: 2 networks, at most 30 epochs; 150 images, about 36.0 hours in one process on this machine"
    )
    assert describe(trainings(lines[1:4])) == ""
    assert all(0 < seconds_per_item(training) < 60 for training in found[:2])


def test_official_data_need_not_be_there() -> None:
    words = "train.py --config config/pascal/pascal_split0_resnet50_manet.yaml --opts data_root nowhere split"
    items = [trainings([f"{words} {split}"])[0].items for split in range(4)]
    assert items == [300 * images for images in (4208, 3726, 2752, 4510)]
    unknown = trainings(["train.py --config config/demo.yaml --opts data_root nowhere"])
    assert unknown[0].items == 0 and unknown[0].epochs == load_config("config/demo.yaml").epochs
    assert "not known without the data" in describe(unknown)
    with pytest.raises(UserError):
        trainings(["train.py --config nothing.yaml"])

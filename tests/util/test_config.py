"""Config files: those of the repository, those of BAM's users, and every mistake named precisely."""

import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from util.config import Config, load_config, restore_config

ROOT = Path(__file__).resolve().parent.parent.parent
BASES = ROOT / "config" / "base"
EXPERIMENTS = [
    (data_set, split, net, experiment)
    for data_set in ("pascal", "coco")
    for split in range(4)
    for net in ("resnet50", "vgg")
    for experiment in ("manet", "manet_5s")
]
BAM_FILE = """\
Data:
  data_root: ../data/VOCdevkit2012/VOC2012
  classes: 2

Train:
  # Aug
  train_h: 225
  train_w: 225
  val_size: 241
  scale_min: 0.8  # minimum random scale
  rotate_max: 15
  ignore_label: 255
  split: 2
  data_set: 'pascal'
  use_split_coco: False
  base_lr: 5e-2
  power: .8
  weight_decay: 1e-4
  warmup: False
  resume:  # the path of a checkpoint
  SubEpoch_val: 'False'
  workers: "6"
  seed_deterministic: True

Method:
  layers: 101
  low_fea: 'layer2'
  kshot_trans_dim: 0

Test_Finetune:
  weight: train5_epoch_12_0.6789.pth
  ann_type: 'bbox'  # mask/bbox
"""
BAM_VALUES = {
    **{"data_root": "../data/VOCdevkit2012/VOC2012", "train_h": 225, "train_w": 225, "val_size": 241},
    **{"scale_min": 0.8, "rotate_max": 15.0, "split": 2, "data_set": "pascal", "use_split_coco": False},
    **{"base_lr": 0.05, "power": 0.8, "weight_decay": 0.0001, "resume": None, "SubEpoch_val": False, "workers": 6},
    **{"deterministic": True, "layers": 101, "kshot_trans_dim": 0, "ann_type": "bbox"},
    "weight": "train5_epoch_12_0.6789.pth",
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("data_set", "split", "net", "experiment"), EXPERIMENTS)
def test_experiments(data_set: str, split: int, net: str, experiment: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cfg = load_config(ROOT / "config" / data_set / f"{data_set}_split{split}_{net}_{experiment}.yaml")
    assert (cfg.data_set, cfg.split, cfg.backbone_name) == (data_set, split, net)
    assert cfg.shot == (5 if experiment == "manet_5s" else 1)
    assert (cfg.base_class_count, cfg.novel_class_count) == ((15, 5) if data_set == "pascal" else (60, 20))
    arch = "HMNet" if data_set == "pascal" else "HMNetAMP"
    assert cfg.experiment_dir == Path(f"exp/{data_set}/{arch}/split{split}/{net}")
    assert cfg.base_learner_path == Path(f"initmodel/PSPNet/{data_set}/split{split}/{net}/best.pth")


def test_no_other_experiments() -> None:
    assert len(list(ROOT.glob("config/*/*_manet*.yaml"))) == len(EXPERIMENTS) == 32


def test_recipe() -> None:
    """The training table of the paper and of the released code."""
    pascal, coco = load_config(BASES / "pascal.yaml"), load_config(BASES / "coco.yaml")
    rows: dict[str, tuple[Any, Any]] = {
        "train_h": (473, 633),
        "feature_size": (64, 80),
        "base_train_h": (417, 417),
        "base_index_split": (0, -1),
        "epochs": (300, 75),
        "stop_interval": (100, 75),
        "amp": ("off", "auto"),
        "scale_min": (0.9, 0.8),
        "scale_max": (1.1, 1.25),
        "rotate_max": (10, 10),
        "test_episodes": (1000, 4000),
        "workers": (8, 32),
        "base_epochs": (100, 20),
        "num_classes": (20, 80),
    }
    for key, values in rows.items():
        assert (getattr(pascal, key), getattr(coco, key)) == values, key
    for cfg in (pascal, coco):
        assert (cfg.base_lr, cfg.trunk_lr, cfg.weight_decay, cfg.index_split) == (5e-3, 6e-5, 1e-4, -1)


def test_base_file_explains_every_key_once() -> None:
    keys = re.findall(r"^ +(\w+):", (BASES / "pascal.yaml").read_text(), re.MULTILINE)
    assert sorted(keys) == sorted(Config.model_fields)


def test_coco_says_only_what_differs() -> None:
    pascal, coco = (load_config(BASES / f"{name}.yaml").model_dump() for name in ("pascal", "coco"))
    keys = re.findall(r"^ +(\w+):", (BASES / "coco.yaml").read_text(), re.MULTILINE)
    derived = {"feature_size", "amp", "test_episodes"}  # worked out from other keys
    assert set(keys) - {"batch_size"} == {key for key in pascal if pascal[key] != coco[key]} - derived


def test_restored_config_has_defaults_for_newer_keys() -> None:
    cfg = load_config(BASES / "coco.yaml", ["split", "2"])
    content = {key: value for key, value in cfg.model_dump().items() if key != "qim_skip"}
    assert restore_config(content) == cfg
    assert restore_config({**content, "split": "two"}) is None


@pytest.mark.parametrize("headings", [True, False])
def test_bam_file(tmp_path: Path, headings: bool) -> None:
    text = BAM_FILE if headings else re.sub(r"^(\w+:\n|  )", "", BAM_FILE, flags=re.MULTILINE)
    path = write(tmp_path / "bam.yaml", text)
    with pytest.warns(UserWarning) as caught:
        cfg = load_config(path)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert str(caught[0].message).startswith(f"{path}: ")
    assert str(caught[0].message).endswith(": classes, ignore_label, low_fea, warmup")
    for key, value in BAM_VALUES.items():
        assert getattr(cfg, key) == value and type(getattr(cfg, key)) is type(value), key
    others = set(Config.model_fields) - set(BAM_VALUES)
    assert cfg.model_dump(include=others) == load_config(BASES / "pascal.yaml").model_dump(include=others)


def test_file_without_base_takes_the_defaults_of_its_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "Data:\n  data_set: coco\nTrain:\nMethod:\n")
    assert load_config(path) == load_config(BASES / "coco.yaml")
    assert load_config(write(tmp_path / "empty.yaml", "# nothing\n")) == load_config(BASES / "pascal.yaml")
    mine = load_config(path, ["data_set", "mine", "num_classes", "7", "folds", "3", "split", "1"])
    assert (mine.data_set, mine.train_h, mine.novel_class_count) == ("mine", 473, 2)


def test_class_counts_add_up_over_folds(make_config: Callable[..., Config]) -> None:
    for _ in range(20):
        classes = random.randint(2, 40)
        folds = random.randint(2, classes)
        fold = [
            make_config(data_set="mine", num_classes=classes, folds=folds, split=split).novel_class_count
            for split in range(folds)
        ]
        assert sum(fold) == classes and fold == sorted(fold, reverse=True) and fold[0] - fold[-1] <= 1


def test_inheritance(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "root.yaml", "epochs: 11\nshot: 3\nweight: old.pth\nblocks: 6\n")
    write(tmp_path / "a" / "middle.yaml", "base: ../root.yaml\nTrain: {shot: 4, epochs: 12}\n")
    leaf = write(tmp_path / "a" / "b" / "leaf.yaml", "base: ../middle.yaml\nshot: 5\nweight:\nwidth:\n")
    cfg = load_config(leaf, ["batch_size", "6", "batch_size", "7"])
    assert (cfg.blocks, cfg.epochs, cfg.shot, cfg.weight, cfg.width, cfg.batch_size) == (6, 12, 5, None, 256, 7)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("base_lr", "1e-4", 1e-4),
        ("base_lr", "2.5E-4", 2.5e-4),
        ("base_lr", "'1e-4'", 1e-4),
        ("base_lr", ".5", 0.5),
        ("base_lr", "1", 1.0),
        ("epochs", "2e2", 200),
        ("vgg", "'True'", True),
        ("vgg", "true", True),
        ("vgg", "no", False),
        ("amp", "off", "off"),
        ("amp", "bf16", "bf16"),
        ("amp", "", "off"),
        ("srm", "none", "none"),
        ("qim", "None", "none"),
        ("resume", "", None),
        ("resume", "None", None),
        ("resume", "auto", "auto"),
        ("seeds", "[0, 1, 2, 3, 321]", [0, 1, 2, 3, 321]),
        ("seeds", "7", [7]),
        ("feature_size", "28", 28),
        ("class_file", "a folder/classes.txt", "a folder/classes.txt"),
    ],
)
def test_values_as_people_write_them(tmp_path: Path, key: str, text: str, value: object) -> None:
    from_file = load_config(write(tmp_path / "file.yaml", f"Train:\n  {key}: {text}\n"))
    for cfg in (from_file, load_config(BASES / "pascal.yaml", [key, text])):
        assert getattr(cfg, key) == value and type(getattr(cfg, key)) is type(value)


def test_derived_values(make_config: Callable[..., Config]) -> None:
    assert make_config(train_h=481, train_w=481).feature_size == 80
    assert make_config(arch="HMNetAMP").amp == "auto" and make_config(arch="HMNetAMP", amp="off").amp == "off"
    assert make_config(layers=101).backbone_name == "resnet101"
    assert make_config(vgg=True, backbone="tiny").backbone_name == "tiny"
    assert make_config(loader_workers=0).loader_worker_count == 0
    assert 1 <= make_config(workers=3).loader_worker_count <= 3


def test_written_config_reads_back_equal(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    for changes in (
        {},
        {"data_set": "coco"},
        {"amp": "off", "arch": "HMNetAMP", "srm": "none", "weight": "'1e5'", "base_lr": random.random() * 1e-5},
        {"data_set": "mine", "num_classes": 9, "seeds": [random.randrange(9), 321], "class_file": "c: d.txt"}
        | {"class_file": "'c: d # e.txt'"},
    ):
        cfg = make_config(**changes)
        assert load_config(write(tmp_path / "written.yaml", cfg.to_yaml())) == cfg


def test_written_yaml_is_plain(make_config: Callable[..., Config]) -> None:
    """Other YAML readers see the same values."""
    assert yaml.safe_load(make_config().to_yaml()) == make_config().given()

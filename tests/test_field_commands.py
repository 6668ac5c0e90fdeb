"""The released configs and BAM's, and the command lines that go with them, as their users have them.

Keys and values are facts about those files; the files are written here.
"""

import itertools
import random
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataset.lists import locate
from tests.toy import ROOT
from util.arguments import evaluation_arguments, experiment_config, training_arguments
from util.config import load_config
from util.errors import UserError

NETS = ("resnet50", "vgg")
LISTS = {
    "pascal": ("./lists/pascal/voc_sbd_merge_noduplicate.txt", "./lists/pascal/val.txt"),
    "coco": ("./lists/coco/train.txt", "./lists/coco/val.txt"),
}
ROOTS = {"pascal": "../data/VOCdevkit2012/VOC2012", "coco": "../data/MSCOCO2014"}
COMMON: dict[str, Any] = {
    **{"ignore_label": 255, "padding_label": 255, "use_split_coco": True, "start_epoch": 0, "power": 0.9},
    **{"momentum": 0.9, "weight_decay": 0.0001, "warmup": False, "print_freq": 10, "save_freq": 10, "resume": None},
    **{"evaluate": True, "batch_size_val": 1, "resized_val": True, "ori_resize": True, "workers": 8, "fix_bn": True},
    **{"manual_seed": 321, "seed_deterministic": False, "zoom_factor": 8, "rotate_min": -10, "rotate_max": 10},
    **{"layers": 50, "aux_weight1": 1.0, "aux_weight2": 1.0, "low_fea": "layer2", "kshot_trans_dim": 2},
    **{"merge": "final", "merge_tau": 0.9, "ann_type": "mask", "SubEpoch_val": True, "fix_random_seed_val": True},
}
# Of the two data sets: HMNet's and BAM's meta-training, and BAM's base learner.
META: dict[str, dict[str, dict[str, Any]]] = {
    "hmnet": {
        "pascal": {"train_h": 473, "epochs": 300, "stop_interval": 100, "batch_size": 2, "scale_min": 0.9},
        "coco": {"train_h": 633, "epochs": 75, "stop_interval": 75, "batch_size": 2, "scale_min": 0.8},
    },
    "bam": {
        "pascal": {"train_h": 473, "epochs": 200, "stop_interval": 75, "batch_size": 2, "scale_min": 0.9},
        "coco": {"train_h": 641, "epochs": 50, "stop_interval": 75, "batch_size": 2, "scale_min": 0.8},
    },
    "bam_base": {
        "pascal": {"train_h": 473, "epochs": 100, "stop_interval": 75, "batch_size": 12, "index_split": 0},
        "coco": {"train_h": 641, "epochs": 20, "stop_interval": 75, "batch_size": 12, "index_split": -1},
    },
}
SCALE_MAX = {"pascal": 1.1, "coco": 1.25}


def values(kind: str, data: str, split: int, net: str, shot: int) -> dict[str, Any]:
    """The keys of one file."""
    train, val = LISTS[data]
    keys = {**COMMON, **META[kind][data], "data_root": ROOTS[data], "train_list": train, "val_list": val}
    keys |= {"data_set": data, "split": split, "vgg": net == "vgg", "train_w": keys["train_h"]}
    keys["val_size"] = keys["train_h"]
    if kind == "bam_base":
        classes = 16 if data == "pascal" else 61
        return {**keys, "classes": classes, "scale_min": 0.5, "scale_max": 2.0, "base_lr": 2.5e-4}
    keys |= {"classes": 2, "scale_max": SCALE_MAX[data], "base_lr": 0.005, "index_split": -1, "shot": shot}
    return keys | {"base_data_root": "../data", "weight": "train_epoch_107_0.6897.pth"} if kind == "bam" else keys


def write(path: Path, keys: Mapping[str, Any]) -> Path:
    """Below the headings that those files have; what stands where is all the same."""
    names = ("Data", "Train", "Method", "Test_Finetune")
    parts = {name: dict([*keys.items()][number :: len(names)]) for number, name in enumerate(names)}
    path.write_text(yaml.dump(parts).replace("null", ""))
    return path


def quietly(path: Path, words: list[str], stage: int = 2) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfg = experiment_config(training_arguments("", [f"--config={path}", *words]), stage)
    return cfg, [str(warning.message) for warning in caught]


HMNET = [*itertools.product(("pascal", "coco"), range(4), NETS, (1, 5))]


@pytest.mark.parametrize(("data", "split", "net", "shot"), HMNET)
def test_all_32_configs_of_hmnet(tmp_path: Path, data: str, split: int, net: str, shot: int) -> None:
    name = f"{data}_split{split}_{net}_manet{'_5s' * (shot == 5)}.yaml"
    keys = values("hmnet", data, split, net, shot)
    path = write(tmp_path / name, keys)
    arch = "HMNet" if data == "pascal" else "HMNetAMP"
    cfg, caught = quietly(path, [f"--arch={arch}", "--viz"])
    assert len(caught) == 1 and "not used here and ignored: aux_weight1" in caught[0]
    with_ours = load_config(ROOT / "config" / data / name)
    for key, value in keys.items():
        if key in type(cfg).model_fields:
            assert getattr(cfg, key) == value, key
    same = {"arch", "backbone_name", "shot", "split", "train_h", "epochs", "stop_interval", "amp", "feature_size"}
    assert {key: getattr(cfg, key) for key in same} == {key: getattr(with_ours, key) for key in same}
    for count in ([f"--episode={1000}"], ["--eposide", "1000"]):
        given = evaluation_arguments([f"--config={path}", f"--arch={arch}", *count, "--viz"])
        with pytest.warns(UserWarning):
            assert experiment_config(given).test_episodes == 1000 and given.episodes_out is None


@pytest.mark.parametrize(("data", "net"), [*itertools.product(("pascal", "coco"), NETS)])
def test_the_four_meta_configs_of_bam(tmp_path: Path, data: str, net: str) -> None:
    keys = values("bam", data, 0, net, 1)
    path = write(tmp_path / f"{data}_split0_{net}.yaml", keys)
    cfg, caught = quietly(path, ["--arch=BAM", "--viz", random.choice(["--local_rank=0", "--local-rank=0"])])
    assert len(caught) == 1 and "base_data_root" in caught[0]
    assert (cfg.arch, cfg.backbone_name, cfg.epochs, cfg.train_h) == ("BAM", net, keys["epochs"], keys["train_h"])
    assert cfg.best_weights(1).parts[:3] == ("exp", data, "BAM")
    with pytest.warns(UserWarning):
        tested = experiment_config(evaluation_arguments([f"--config={path}", "--arch=BAM", "--viz"]))
    assert tested.weight == "train_epoch_107_0.6897.pth"


@pytest.mark.parametrize(("data", "net"), [*itertools.product(("pascal", "coco"), NETS)])
def test_the_four_base_configs_of_bam(tmp_path: Path, data: str, net: str) -> None:
    keys = values("bam_base", data, 1, net, 1)
    path = write(tmp_path / f"{data}_split1_{net}_base.yaml", keys)
    cfg, caught = quietly(path, ["--arch=PSPNet", "--viz", "--opts", "batch_size", "6"], stage=1)
    assert len(caught) == 2 and "train_h as base_train_h, batch_size as base_batch_size" in caught[0]
    ours = load_config(ROOT / "config/base" / f"{data}.yaml")
    assert (cfg.base_batch_size, cfg.base_epochs, cfg.base_train_h) == (6, keys["epochs"], keys["train_h"])
    assert (cfg.base_lr_encoder, cfg.base_index_split, cfg.base_stop_interval) == (2.5e-4, keys["index_split"], 75)
    assert (cfg.base_scale_min, cfg.base_scale_max, cfg.split) == (0.5, 2.0, 1)
    for key in ("epochs", "batch_size", "base_lr", "train_h", "train_w", "scale_min", "scale_max", "index_split"):
        assert getattr(cfg, key) == getattr(ours, key), key  # stage 2's are as they were
    for parse in (lambda words: training_arguments("", words), evaluation_arguments):
        with pytest.raises(UserError, match=r"_base\.yaml: is a config of stage 1, .*; give it to train_base\.py$"):
            experiment_config(parse([f"--config={path}", "--arch=BAM"]))


def test_a_config_with_keys_of_stage_1_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine_base.yaml"
    path.write_text("epochs: 3\nbase_epochs: 4\n")
    for stage in (1, 2):
        cfg = experiment_config(training_arguments("", ["--config", str(path)]), stage)
        assert (cfg.epochs, cfg.base_epochs) == (3, 4)


def test_released_lists_where_the_configs_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in LISTS["pascal"]:
        with pytest.raises(
            UserError, match=r"copy the lists/ .* here, or .*prepare pascal.*train_list ImageSets/train"
        ):
            locate(tmp_path / "data", path)
        for folder in (tmp_path / "data", tmp_path):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
            assert locate(tmp_path / "data", path).resolve() == folder / path


@pytest.mark.parametrize("script", ["train_pascal.py", "train_coco.py", "test_pascal.py", "test_coco.py"])
def test_entry_points_of_hmnet(script: str, tmp_path: Path) -> None:
    """They are train.py and test.py; with a mistake, which is told before anything is loaded."""
    words = [sys.executable, script, f"--config={tmp_path}/none.yaml", "--arch=HMNet", "--viz", "--eposide=seven"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"usage: {script.partition('_')[0]}.py ")
    assert done.stderr.endswith("argument --episode/--eposide: invalid int value: 'seven'\n")


@pytest.mark.parametrize(
    ("script", "words", "command"),
    [
        ("train.sh", [], "sh train_pascal.sh 1234 0 resnet50 bam"),
        ("train.sh", ["coco", "split2", "vgg"], "sh train_coco.sh 1234 2 vgg bam"),
        ("test.sh", ["coco", "split1", "vgg"], "sh test_coco.sh 1 vgg bam"),
        ("test_GFSS.sh", ["pascal", "split3", "vgg"], "sh test_pascal.sh 3 vgg bam --generalized"),
    ],
)
def test_scripts_of_bam(script: str, words: list[str], command: str) -> None:
    done = subprocess.run(["sh", str(ROOT / script), *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {script} is BAM's; the command here is: {command}\n"
    name, *arguments = command.split()[1:]
    usage = subprocess.run(["sh", str(ROOT / name)], capture_output=True, text=True).stderr.splitlines()[0]
    assert len(arguments) >= len(usage.partition("[")[0].split()) - 3

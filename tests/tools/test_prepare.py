"""The command line of tools.prepare, as a user types it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from model.build import build_base_learner, build_model
from tests.dataset.prepare.trees import make_pascal, write_jpeg
from tests.toy import entry_point
from tools.prepare import main
from util.arguments import evaluation_arguments
from util.config import Config, load_config
from util.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[2]


def test_from_raw_archives_to_figures(tmp_path: Path) -> None:
    """Archives as downloaded, then lists and masks, then an evaluation on them."""
    archives, root, initmodel, exp = (tmp_path / name for name in ("archives", "root", "init", "exp"))
    make_pascal(tmp_path / "raw", archives, np.random.default_rng())
    assert main(["pascal", "--root", str(root), "--archives", str(archives), "--no-checksum", "--workers", "1"]) == 0
    small = {"backbone": "tiny", "train_h": 65, "train_w": 65, "val_size": 65, "feature_size": 8}
    small |= {"width": 16, "blocks": 2}
    places = {"data_root": root, "initmodel": initmodel, "exp": exp}
    keys = small | places | {"area_threshold": 50, "test_episodes": 7, "device": "cpu"}
    words = [str(word) for pair in keys.items() for word in pair]
    file = ROOT / "config/pascal/pascal_split2_resnet50_manet.yaml"
    cfg = load_config(file, words)
    save(build_base_learner(cfg, pretrained=False), cfg.base_learner_path)
    result = tmp_path / "result.json"
    words = ["--config", str(file), "--method", "prior", "--result", str(result), "--opts", *words]
    entry_point("test").main(evaluation_arguments(words))
    figures = json.loads(result.read_text())["results"][0]
    assert len(figures["episode_iou"]) == 7
    assert set(figures["class_iou"]) == {"11", "12", "13", "14", "15"}


def test_check_wants_one_data_set() -> None:
    for words in ([], ["pascal", "--config", "c.yaml"]):
        with pytest.raises(UserError, match="give either pascal or coco, or --config FILE"):
            main(["check", *words])


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    write_jpeg(tmp_path / "src/images/a.jpg", np.random.default_rng())
    (tmp_path / "src/masks").mkdir()
    Image.fromarray(np.arange(9000, dtype=np.uint16).reshape(90, 100) % 3).save(tmp_path / "src/masks/a.png")
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: main(["custom", str(tmp_path / "src"), "--out", str(tmp_path / "file/out")]))
    assert ended.value.code == 2
    assert f"error: {tmp_path}/file/out: Not a directory; fix that and run again\n" in capsys.readouterr().err
    archive = tmp_path / "root/archives/annotations_trainval2014.zip"
    missing = f"{archive} is missing; put {archive.name} into {archive.parent}, or give --archives DIR or --download"
    with pytest.raises(UserError, match=f"^{re.escape(missing)}$"):
        main(["coco", "--root", str(tmp_path / "root")])


def test_share_of_validation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--val 1.5: a share between 0 and 1"):
        main(["custom", str(tmp_path), "--out", str(tmp_path / "out"), "--val", "1.5"])


def test_without_weights_every_place_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among them 16 base learners, and HMNet's 32 networks of 2 data sets, 4 folds, 2 backbones, 1 and 5 shots."""
    initmodel, exp = str(tmp_path / "init"), str(tmp_path / "exp")
    assert main(["check-weights", "--opts", "initmodel", initmodel, "exp", exp]) == 0
    *rows, total = capsys.readouterr().out.splitlines()
    assert total == f"0 present, {len(rows)} absent, 0 misfit"
    places = {Path(word) for row in rows for word in row.split() if word.startswith(str(tmp_path))}
    assert len(places) == len(rows)
    assert len([path for path in places if "PSPNet" in path.parts]) == 16
    assert len([path for path in places if {"HMNet", "HMNetAMP"} & {*path.parts}]) == 32
    assert tmp_path / "init/resnet50_v2.pth" in places
    assert tmp_path / "init/PSPNet/coco/split3/vgg/best.pth" in places
    assert tmp_path / "exp/pascal/HMNet/split2/resnet50/snapshot/best_5shot.pth" in places


@pytest.fixture
def experiment(tmp_path: Path) -> tuple[list[str], Config]:
    """Words of a command line for a small network, and its config."""
    initmodel, exp = str(tmp_path / "init"), str(tmp_path / "exp")
    small = ["backbone", "tiny", "width", "16", "blocks", "2", "initmodel", initmodel, "exp", exp]
    file = ROOT / "config/pascal/pascal_split1_resnet50_manet.yaml"
    return ["--config", str(file), "--opts", *small], load_config(file, small)


def save(network: nn.Module, path: Path, wrap: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"module.{key}" if wrap else key: value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if wrap else state, path)


def test_weights_that_fit(experiment: tuple[list[str], Config], capsys: pytest.CaptureFixture[str]) -> None:
    words, cfg = experiment
    save(build_base_learner(cfg, pretrained=False), cfg.base_learner_path)
    snapshot = cfg.experiment_dir / "snapshot"
    save(build_model(cfg, pretrained=False), snapshot / "train_epoch_12_0.6543.pth", wrap=True)
    assert main(["check-weights", *words]) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.split() == ["base", "learner", str(cfg.base_learner_path), "present"]
    assert second.split() == ["network", str(snapshot / "train_epoch_12_0.6543.pth"), "present"]
    assert total == "2 present, 0 absent, 0 misfit"


def test_weights_that_do_not_fit(experiment: tuple[list[str], Config], capsys: pytest.CaptureFixture[str]) -> None:
    words, cfg = experiment
    network = build_base_learner(cfg, pretrained=False)
    state = network.state_dict()
    del state[max(state)]
    cfg.base_learner_path.parent.mkdir(parents=True)
    torch.save(state, cfg.base_learner_path)
    best = cfg.experiment_dir / "snapshot/best_1shot.pth"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"no archive")
    assert main(["check-weights", *words]) == 1
    first, second, total = capsys.readouterr().out.splitlines()
    assert "misfit  the weights do not fit this configuration: missing: " in first
    assert "misfit  not a plain tensor archive, or damaged" in second
    assert total == "0 present, 0 absent, 2 misfit"

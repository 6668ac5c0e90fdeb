"""Names of results: what --opts changes about a test is told, what follows from it is not."""

from pathlib import Path

import pytest

from engine.identity import result_name
from tests.toy import ROOT
from util.config import load_config

PASCAL = ROOT / "config/pascal/pascal_split0_resnet50_manet.yaml"


@pytest.mark.parametrize(
    ("opts", "name"),
    [
        ("", "test_1shot"),
        ("ann_type bbox shot 5", "test_5shot_bbox"),
        ("shot 5 trained_shot 1", "test_5shot_trained_shot1"),
        ("test_set fss1000 protocol hsnet", "test_1shot_fss10000_hsnet"),
        ("test_set pascal_part test_fold 2 protocol hsnet", "test_1shot_pascal_part2_hsnet"),
        ("test_classes base ensemble False", "test_1shot_base"),
        ("seeds [0,1] val_size 241 amp bf16", "test_1shot_val_size241_ampbf16_seeds0-1"),
        ("test_episodes 20 protocol seeded", "test_1shot_seeded_test_episodes20"),
        ("manual_seed 7 epochs 3 exp elsewhere blocks 4", "test_1shot"),
        ("test_fold 2", "test_1shot_fold2"),
    ],
)
def test_names(opts: str, name: str) -> None:
    assert result_name(load_config(PASCAL, opts.split()), "HMNet", PASCAL, Path("best.pth")) == name


def test_methods_and_other_config_files(tmp_path: Path) -> None:
    cfg = load_config(PASCAL, ["seeds", "[0, 1]"])
    assert result_name(cfg, "prior") == "test_1shot_prior"
    changed = load_config(
        PASCAL, ["arch", "density", "ensemble", "False", "layers", "101", "density_concentration", "50"]
    )
    assert result_name(changed, "density", PASCAL) == "test_1shot_density_density_concentration50.0"
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {PASCAL}\nseeds: [0, 1]\n")
    assert (
        result_name(load_config(own), "HMNet", own, Path("best.pth")) == "test_1shot"
    )  # its file says so: nothing is unusual

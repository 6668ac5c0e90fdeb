"""From result files to tables."""

import hashlib
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.paper.sheets import PASCAL, cells, fill
from tests.toy import generator
from tests.written import seed_metrics, write_test
from tools.paper.published import published
from tools.paper.runs import read_runs
from tools.paper.tables import Cell, Sources
from tools.paper.tables import fill as fill_table
from util.config import load_config
from util.errors import UserError


def test_without_runs_a_table_is_the_paper(place: Path) -> None:
    sheet = fill(1, place)
    assert cells(sheet, "resnet50, 1 shot, HMNet")["fold 2"] == Cell(paper=70.0)
    assert cells(sheet, "vgg, 5 shot, BAM")["mean"] == Cell(paper=68.8)
    assert cells(sheet, "vgg, 5 shot, HDMNet")["FB-IoU"] == Cell()


@pytest.mark.parametrize("number", range(1, 10))
def test_every_table_holds_all_published_numbers(place: Path, number: int) -> None:
    sheet, paper = fill(number, place), published("tables")[number]["rows"]
    assert list(sheet.rows) == [row["name"] for row in paper]
    for found, published_row in zip(sheet.rows.values(), paper, strict=True):
        shown = [cell.paper for cell in found]
        assert len(shown) == len(sheet.columns)
        assert [*shown, None][: len(published_row["paper"])] == published_row["paper"]


def test_a_filled_cell_and_its_difference(place: Path) -> None:
    write_test(load_config(PASCAL.format(2)), seed_metrics(miou=0.712, fb_iou=0.8))
    cell = cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"]
    assert cell.own == pytest.approx(71.2)
    assert cell.difference == pytest.approx(1.2)
    assert cell.spread is None
    assert cell.text() == "71.2 / 70.0 / +1.2"
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["mean"].own is None  # three folds are missing
    for split in (0, 1, 3):
        write_test(load_config(PASCAL.format(split)), seed_metrics(miou=0.6, fb_iou=0.7))
    filled = cells(fill(1, place), "resnet50, 1 shot, HMNet")
    assert filled["mean"].own == pytest.approx((71.2 + 3 * 60) / 4)
    assert filled["FB-IoU"].own == pytest.approx((80 + 3 * 70) / 4)


def test_spread_is_over_training_seeds(place: Path) -> None:
    for seed, miou in ((1, 0.6), (2, 0.7)):
        write_test(
            load_config(PASCAL.format(0), ["manual_seed", str(seed), "exp", f"exp/{seed}"]), seed_metrics(miou=miou)
        )
    newer = write_test(load_config(PASCAL.format(0), ["manual_seed", "2", "exp", "exp/3"]), seed_metrics(miou=0.8))
    later = time.time() + 1e6
    os.utime(newer, (later, later))  # replaces the older run with that seed
    cell = cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 0"]
    assert cell.own == pytest.approx(70)
    assert cell.spread == pytest.approx(14.142136)  # of 60 and 80
    assert cell.text() == "70.0 ± 14.1 / 72.2 / -2.2"
    chosen = Sources(read_runs(place / "exp", [1, 5]), splits=[0], training_seeds=[1, 5])
    sheet = fill_table(1, chosen)
    assert cells(sheet, "resnet50, 1 shot, HMNet")["fold 0"].own == pytest.approx(60)
    assert any("manual_seed 5 exp exp/manual_seed-5" in command for command in sheet.missing)
    assert not any("manual_seed 1 " in command and " 0 resnet50 manet " in command for command in sheet.missing)


def test_what_belongs_to_no_table_is_passed_over_and_what_cannot_be_read_is_named(place: Path) -> None:
    cfg = load_config(PASCAL.format(0))
    write_test(cfg, method="prior", path=place / "exp/a/result_prior.json")
    (place / "exp/a/result.json").write_text('{"kind": "training"}')
    assert [run.result.method for run in read_runs(place / "exp")] == ["prior"]
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 0"].own is None
    path = write_test(cfg, config={**cfg.model_dump(), "old": 1}, path=place / "exp/a/result_old.json")
    with pytest.raises(UserError, match=r"result_old.json: config: unknown key 'old'; remove the file or test again"):
        fill(1, place)
    path.unlink()
    for text, message in (("[1]", "Input should be an object; remove"), ('{"kind": ', "Invalid JSON: .*; remove")):
        (place / "exp/a/result_other.json").write_text(text)
        with pytest.raises(UserError, match=f"result_other.json: {message}"):
            read_runs(place / "exp")


def test_other_settings_are_told(place: Path) -> None:
    write_test(load_config(PASCAL.format(0), ["test_episodes", "100", "val_size", "241"]), seed_metrics(miou=0.6))
    sheet = fill(5, place)
    assert cells(sheet, "mask")["fold 0"].own == pytest.approx(60)
    note = "mask, fold 0: val_size 241 instead of 473, test_episodes 100 instead of 1000"
    assert note in sheet.notes
    write_test(load_config(PASCAL.format(0), ["exp", "exp/full"]), seed_metrics(miou=0.7))  # one as wanted is preferred
    sheet = fill(5, place)
    assert cells(sheet, "mask")["fold 0"].own == pytest.approx(70)
    assert note not in sheet.notes


def test_rows_are_told_apart(place: Path) -> None:
    """Every network of Table 3 in its own row and in no other."""
    components = {
        "self no, SRM none, QIM none, ensemble no": ["self_blocks", "false", "srm", "none", "qim", "none"],
        "self yes, SRM basic, QIM none, ensemble no": ["srm", "basic", "qim", "none"],
        "self yes, SRM recap, QIM share, ensemble no": [],
    }
    for number, changes in enumerate(components.values(), 1):
        cfg = load_config(PASCAL.format(0), ["ensemble", "false", "exp", f"exp/{number}", *changes])
        write_test(cfg, seed_metrics(miou=number / 10))
    sheet = fill(3, place)
    found = {name: row[0].own for name, row in sheet.rows.items() if row[0].own is not None}
    assert found == {name: pytest.approx(10.0 * number) for number, name in enumerate(components, 1)}
    assert cells(fill(8, place), "concat (BAM)")["fold 0"].own == pytest.approx(10)
    assert cells(fill(4, place), "8")["mIoU"].own is None


def test_statistics_over_seeds(place: Path) -> None:
    """Table 6's last rows, from all folds and seeds; empty as long as one is missing."""
    mious = generator().uniform(0.3, 0.6, (5, 4))
    for split in range(4):
        cfg = load_config(f"config/coco/coco_split{split}_resnet50_manet.yaml", ["seeds", "[0, 1, 2, 3, 321]"])
        assert cells(fill(6, place), "HMNet, mean")["mean"].own is None
        write_test(
            cfg, *(seed_metrics(seed, float(value)) for seed, value in zip(cfg.seeds, mious[:, split], strict=True))
        )
    sheet = fill(6, place)
    for name, function, paper in (("mean", np.mean, 52.3), ("std", partial(np.std, ddof=1), 0.3)):
        filled = cells(sheet, f"HMNet, {name}")
        assert filled["fold 2"].own == pytest.approx(100 * function(mious[:, 2]))
        assert filled["mean"].own == pytest.approx(100 * function(mious.mean(1)))
        assert filled["mean"].paper == paper
    assert cells(sheet, "HDMNet, seed 2")["fold 0"] == Cell(paper=44.9)


def test_a_test_of_other_weights_than_lie_there_now_is_named_and_not_used(place: Path) -> None:
    cfg = load_config(PASCAL.format(2))
    weights = cfg.experiment_dir / "snapshot/best_1shot.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    about: dict[str, Any] = {"weights": str(weights), "weights_digest": hashlib.sha256(b"first").hexdigest()}
    path = write_test(cfg, seed_metrics(miou=0.712), **about)
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own == pytest.approx(71.2)
    weights.write_bytes(b"again")
    with pytest.warns(UserWarning, match=r"result_test_1shot.json: is of other weights than .*pth; .*test again"):
        assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own is None
    write_test(cfg, seed_metrics(miou=0.712), weights=str(weights))  # as former versions left it
    old = path.stat().st_mtime - 10
    os.utime(weights, (old, old))
    assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own == pytest.approx(71.2)
    os.utime(weights, (old + 20, old + 20))
    with pytest.warns(UserWarning, match=r"result_test_1shot.json: is older than .*best_1shot.pth"):
        assert cells(fill(1, place), "resnet50, 1 shot, HMNet")["fold 2"].own is None


def test_base_learners_beside_the_published(place: Path) -> None:
    write_test(load_config(PASCAL.format(0)))  # a test in the same exp is none of a base learner
    course = place / "exp/coco/PSPNet/split1/vgg/result.json"
    course.parent.mkdir(parents=True)
    course.write_text('{"kind": "training", "finished": true, "miou": 0.4404}')
    ready = place / "initmodel/PSPNet/pascal/split3/resnet50/best.pth"
    ready.parent.mkdir(parents=True)
    ready.touch()
    sheet = fill(0, place)
    cell = cells(sheet, "coco, vgg")["fold 1"]
    assert (cell.own, cell.paper, cell.difference) == (pytest.approx(44.04), 43.04, pytest.approx(1))
    assert cells(sheet, "pascal, resnet50")["fold 3"] == Cell(paper=73.72)
    assert len(sheet.missing) == 14 and "sh train_base.sh 1234 coco 1 resnet50 --opts resume auto" in sheet.missing


def test_other_methods_stand_beside_what_they_published(place: Path) -> None:
    for split in range(4):
        for name, miou in (("vgg_bam_5s", 0.7), ("resnet50_hsnet", 0.6)):
            cfg = load_config(f"config/pascal/pascal_split{split}_{name}.yaml")
            write_test(cfg, seed_metrics(miou=miou, fb_iou=0.8), method=cfg.arch)
    sheet = fill(1, place)
    assert cells(sheet, "vgg, 5 shot, BAM")["mean"].difference == pytest.approx(70 - 68.8)
    assert cells(sheet, "resnet50, 1 shot, HSNet")["fold 0"].difference == pytest.approx(60 - 64.3)
    assert cells(sheet, "resnet50, 5 shot, BAM")["mean"].own is None


def test_later_methods_stand_below_the_tables(place: Path) -> None:
    notes = [fill(number, place).notes[-1] for number in (1, 2)]
    assert "UINO-FSS 80.6, FSSAM 81.0" in notes[0] and "GF-SAM 58.7 / 66.8, SANSA 60.2 / 64.3" in notes[1]

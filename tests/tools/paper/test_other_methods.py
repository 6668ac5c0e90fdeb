"""Methods beside HMNet in the tables: own results beside what their authors published."""

from pathlib import Path

import pytest

from tests.tools.test_report import cells, fill
from tests.toy import ROOT
from tests.written import seed_metrics, write_test
from util.config import load_config


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the project's configs and no runs."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_other_methods_stand_beside_what_they_published(place: Path) -> None:
    for split in range(4):
        for name, miou in (("vgg_bam_5s", 0.7), ("resnet50_hsnet", 0.6)):
            cfg = load_config(f"config/pascal/pascal_split{split}_{name}.yaml")
            write_test(cfg, seed_metrics(miou=miou, fb_iou=0.8), method=cfg.arch)
    sheet = fill(1, place)
    assert cells(sheet, "vgg, 5 shot, BAM")["mean"].difference == pytest.approx(70 - 68.8)
    assert cells(sheet, "resnet50, 1 shot, HSNet")["fold 0"].difference == pytest.approx(60 - 64.3)
    assert cells(sheet, "resnet50, 5 shot, BAM")["mean"].own is None

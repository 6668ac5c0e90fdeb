import hashlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tests import toy
from tests.processes import run_processes
from tests.toy import toy_config, write_toy, write_weights
from util.arguments import evaluation_arguments
from util.config import Config
from util.errors import UserError


@pytest.fixture
def entry_point() -> ModuleType:
    return toy.entry_point("test")


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A toy experiment with random weights, its config in toy.yaml; results go to tmp_path/exp."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_toy(tmp_path / "toy")
    cfg = toy_config(tmp_path)
    (tmp_path / "toy.yaml").write_text(cfg.to_yaml())
    write_weights(cfg)
    return cfg


def run(entry_point: ModuleType, *arguments: object) -> None:
    entry_point.main(evaluation_arguments(["--config", "toy.yaml", *map(str, arguments)]))


def test_seeds_table_json_log_and_panels(
    cfg: Config, entry_point: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run(entry_point, "--visualize", 2, "--opts", "seeds", "[0, 1, 2]")
    path = cfg.experiment_dir / "result_test_1shot_seeds0-1-2.json"
    content = json.loads(path.read_text())
    assert [result["seed"] for result in content["results"]] == [0, 1, 2]
    miou = [result["miou"] for result in content["results"]]
    assert content["aggregate"]["miou"] == pytest.approx({"mean": np.mean(miou), "std": np.std(miou, ddof=1)})
    assert content["config"]["data_set"] == "toy" and content["config"]["seeds"] == [0, 1, 2]
    assert content["weights"].endswith("best_1shot.pth") and content["method"] == "HMNet"
    assert content["weights_digest"] == hashlib.sha256(Path(content["weights"]).read_bytes()).hexdigest()
    queries = [json.loads(line)["query"] for line in path.with_suffix(".episodes.jsonl").read_text().splitlines()[:7]]
    assert content["results"][0]["query_images"] == len(set(queries)) and content["versions"]["torch"]
    assert content["classes"]["2"] == "thing2" and "episode_pixels" not in content["results"][0]
    printed, logged = capsys.readouterr().out, path.with_suffix(".log").read_text()
    for text in (printed, logged):
        assert f"{100 * miou[1]:.2f}" in text and "1 thing1" in text and "mIoU over 3 seeds" in text
    panels = sorted((cfg.experiment_dir / "panels_test_1shot").iterdir())
    assert [panel.name[:5] for panel in panels] == ["00000", "00003"]
    assert np.asarray(Image.open(panels[0])).shape[2] == 3


def test_lines_of_episodes_hold_every_figure_and_are_episodes(cfg: Config, entry_point: ModuleType) -> None:
    """All figures of the result from the pixels of the lines, and the same episodes tested again from them."""
    run(entry_point, "--episodes-out", "drawn.jsonl", "--opts", "seeds", "[4, 5]")
    path = cfg.experiment_dir / "result_test_1shot_seeds4-5.json"
    rows = [json.loads(line) for line in path.with_suffix(".episodes.jsonl").read_text().splitlines()]
    drawn = [json.loads(line) for line in Path("drawn.jsonl").read_text().splitlines()]
    results = json.loads(path.read_text())["results"]
    assert [(row["seed"], row["number"]) for row in rows] == [(seed, n) for seed in (4, 5) for n in range(7)]
    assert [{key: row[key] for key in ("query", "class_id", "support")} for row in rows[:7]] == drawn
    assert all(row["class"] == f"thing{row['class_id']}" for row in rows)
    for result, part in zip(results, (rows[:7], rows[7:]), strict=True):
        assert [row["iou"] for row in part] == result["episode_iou"]
        inside, union = (np.array([row[key] for row in part]) for key in ("intersection", "union"))
        assert result["fb_iou"] == pytest.approx((inside.sum(0) / union.sum(0)).mean())
        for class_id, iou in result["class_iou"].items():
            chosen = np.array([row["class_id"] == int(class_id) for row in part])
            if chosen.any():
                assert iou == pytest.approx(inside[chosen, 1].sum() / union[chosen, 1].sum())
    path.with_suffix(".episodes.jsonl").rename("all.jsonl")
    found = []
    for name, words in (("seeds7-8", ("mask", "seeds", "[7, 8]")), ("bbox", ("bbox",))):
        run(entry_point, "--opts", "episodes_file", "all.jsonl", "ann_type", *words)
        path = cfg.experiment_dir / f"result_test_1shot_{name}_episodes_fileall.jsonl.json"
        found += json.loads(path.read_text())["results"]
    masks, boxes = found  # the same episodes for every seed
    assert masks["episode_iou"] == pytest.approx([row["iou"] for row in rows], abs=1e-6)
    assert boxes["episode_iou"] != masks["episode_iou"]


def test_arguments_of_scripts_written_for_bam(cfg: Config, entry_point: ModuleType) -> None:
    run(entry_point, "--arch", "HMNet", "--local_rank", 0, "--viz", "--opts", "test_episodes", 3)
    assert len(list((cfg.experiment_dir / "panels_test_1shot").iterdir())) == 3


def test_prior_needs_no_trained_network(cfg: Config, entry_point: ModuleType, tmp_path: Path) -> None:
    (cfg.experiment_dir / "snapshot" / "best_1shot.pth").unlink()
    run(entry_point, "--method", "prior", "--result", "mine/result.json")
    content = json.loads((tmp_path / "mine/result.json").read_text())
    assert content["method"] == "prior" and content["weights"] is None
    assert content["aggregate"]["miou"]["std"] is None


def test_support_check_is_printed_and_stored(
    cfg: Config, entry_point: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run(entry_point, "--support-check", "--method", "prototype", "--opts", "seeds", "[0, 1]")
    folder = cfg.model_copy(update={"arch": "prototype"}).experiment_dir
    content = json.loads((folder / "result_test_1shot_prototype_seeds0-1.json").read_text())
    assert content["method"] == "prototype" and content["weights"] is None
    own = np.mean([result["miou"] for result in content["results"]])
    for changed in content["support_check"].values():
        left = np.mean([result["miou"] for result in changed["results"]])
        assert changed["miou_drop"]["mean"] == pytest.approx(own - left, abs=1e-9)
    assert list(content["support_check"]) == ["other_class", "empty_mask"]
    printed = capsys.readouterr().out
    assert "emptied support mask" in printed and "mIoU, hard episodes" in printed


def test_tests_of_other_seeds_sizes_and_weights_have_files_of_their_own(cfg: Config, entry_point: ModuleType) -> None:
    """And panels of the test before do not stay among those of the last."""
    folder, best = cfg.experiment_dir, cfg.experiment_dir / "snapshot" / "best_1shot.pth"
    shutil.copy(best, best.with_name("train_epoch_3_0.5.pth"))
    Path("elsewhere").mkdir()
    torch.save({**torch.load(best, weights_only=True), "more": 1}, "elsewhere/best_1shot.pth")
    run(entry_point, "--visualize", 6)
    drawn = sorted(path.name for path in (folder / "panels_test_1shot").iterdir())
    (folder / "panels_test_1shot/00002_mine.png.txt").touch()
    run(entry_point, "--visualize", 2, "--opts", "seeds", 5)
    run(entry_point, "--opts", "val_size", 41)
    run(entry_point, "--opts", "test_episodes", 3)
    run(entry_point, "--opts", "protocol", "seeded", "shot", 2, "trained_shot", 1)
    run(entry_point, "--opts", "weight", "train_epoch_3_0.5.pth")
    run(entry_point, "--opts", "weight", "elsewhere/best_1shot.pth")
    digest = hashlib.sha256(Path("elsewhere/best_1shot.pth").read_bytes()).hexdigest()
    endings = ["", "_seeds5", "_val_size41", "_test_episodes3", "_train_epoch_3_0.5", f"_best_1shot-{digest[:8]}"]
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("result_test*.json")}
    names = {f"result_test_1shot{ending}" for ending in endings}
    assert found.keys() == names | {"result_test_2shot_seeded_trained_shot1"}
    assert found[f"result_test_1shot{endings[-1]}"]["weights_digest"] == digest
    panels = sorted(path.name for path in (folder / "panels_test_1shot").iterdir())
    assert len(drawn) == 6 and len(panels) == 3 and "00002_mine.png.txt" in panels


def test_where_weights_are_looked_for(cfg: Config, entry_point: ModuleType, tmp_path: Path) -> None:
    path = cfg.experiment_dir / "snapshot" / "best_1shot.pth"
    assert entry_point.find_weights(cfg) == path
    assert entry_point.find_weights(toy_config(tmp_path, weight="best_1shot.pth")) == path
    assert entry_point.find_weights(toy_config(tmp_path, weight=path)) == path
    path.rename(tmp_path / "elsewhere.pth")
    assert entry_point.find_weights(toy_config(tmp_path, weight="elsewhere.pth")) == Path("elsewhere.pth")
    with pytest.raises(UserError, match=r"snapshot/best_1shot\.pth: no such weights.*train"):
        run(entry_point)
    with pytest.raises(UserError, match=r"'absent\.pth'.*snapshot"):
        run(entry_point, "--opts", "weight", "absent.pth")


def test_released_weights_are_found_by_their_names(
    cfg: Config, entry_point: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a best file the newest epoch of the shots in question; the log says which."""
    best = cfg.experiment_dir / "snapshot" / "best_1shot.pth"
    newest = best.with_name("train_epoch_100.5_0.6012.pth")
    for name in ("train_epoch_99_0.6100", "train5_epoch_200_0.7", "train_epoch_7_0.5", "train_epoch_300"):
        best.with_name(f"{name}.pth").touch()
    assert entry_point.find_weights(cfg) == best
    best.rename(newest)
    run(entry_point, "--opts", "test_episodes", "2")
    assert f"weights: {newest}" in capsys.readouterr().out
    five = cfg.model_copy(update={"shot": 5})
    assert entry_point.find_weights(five) == best.with_name("train5_epoch_200_0.7.pth")
    assert entry_point.find_weights(five.model_copy(update={"trained_shot": 1})) == newest


def test_weights_of_another_fold_are_refused(
    cfg: Config, entry_point: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cfg.experiment_dir / "snapshot" / "best_1shot.pth"  # of split 0
    run(entry_point, "--opts", "test_episodes", 2)
    assert "by its path it is toy split 0" in capsys.readouterr().out
    other = ("--opts", "test_episodes", 2, "split", 1, "weight", path)
    with pytest.raises(UserError, match=r"best_1shot\.pth: by its path trained on split 0, not 1;"):
        run(entry_point, *other)
    run(entry_point, *other, "allow_other_split", True)
    assert "tested although trained on split 0, not 1" in capsys.readouterr().out


def test_classes_without_images_are_listed_as_not_tested(
    cfg: Config, entry_point: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class 2 of the novel classes 1 and 2 covers no image by so many pixels."""
    for mask in (Path(cfg.data_root) / "SegmentationClassAug").glob("val*.png"):
        values = np.array(Image.open(mask))
        Image.fromarray(np.where(values == 2, 0, values)).save(mask)
    run(entry_point)
    printed = capsys.readouterr().out
    assert "not tested, as no image shows enough of them: 2 thing2" in printed
    assert re.search(r"2 thing2 +not drawn", printed)


def test_two_processes_find_what_one_finds(
    cfg: Config, entry_point: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_processes(1, run, entry_point, "--opts", "feature_cache_mb", 0)  # with one thread, as the two have
    alone = json.loads((cfg.experiment_dir / "result_test_1shot.json").read_text())
    capfd.readouterr()
    words = ("--visualize", 7, "--result", "two.json", "--opts", "feature_cache_mb", 0)
    run_processes(2, run, entry_point, *words)
    together = json.loads((tmp_path / "two.json").read_text())
    assert together["results"][0]["episode_iou"] == alone["results"][0]["episode_iou"]
    assert together["results"][0]["miou"] == alone["results"][0]["miou"]
    assert len(list((tmp_path / "panels_test_1shot").iterdir())) == 7
    assert capfd.readouterr().out.count("mean episode IoU") == 1

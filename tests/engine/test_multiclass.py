"""N-way and generalized tests: figures from the network's own maps, pixel by pixel."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from dataset.benchmarks.table import open_benchmark
from dataset.index import Mode
from dataset.multiclass import MultiEpisodes, draw_generalized, draw_ways
from engine import multiclass
from model.build import build_model
from model.methods.hmnet import HMNet
from tests.toy import entry_point, toy_config, write_toy, write_weights
from util.arguments import evaluation_arguments
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError

WORLD = ProcessGroup(torch.device("cpu"))


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy")
    return toy_config(tmp_path, split=1, seeds=[5, 6], test_episodes=6)


def network(cfg: Config) -> HMNet:
    """In float64, or scores that are equal but for rounding would be decided by how they are computed."""
    model = build_model(cfg, pretrained=False).eval().double()
    model.backbone.register_forward_pre_hook(lambda _backbone, inputs: (inputs[0].double(), *inputs[1:]))
    return cast(HMNet, model)


def contents(cfg: Config, mode: Mode) -> tuple[dict, dict]:
    files = open_benchmark(cfg).base_files(mode)
    masks = {name: np.array(Image.open(mask)) for name, (_, mask) in files.items()}
    return {name: sorted(set(np.unique(m).tolist()) - {0, 255}) for name, m in masks.items()}, masks


def test_ways(cfg: Config) -> None:
    model = network(cfg)
    result = multiclass.test_ways(model, cfg, WORLD, 2)
    present, masks = contents(cfg, "train")
    files = open_benchmark(cfg).base_files("train")
    for run in result["runs"]:
        sums: dict = defaultdict(lambda: np.zeros(4))
        episodes = draw_ways(present, open_benchmark(cfg).wanted("val"), 2, 1, 6, run["seed"], label_all=True)
        dataset = MultiEpisodes(episodes, present, files, cfg.val_size, "square")
        for item, episode in ((dataset[i], episode) for i, episode in enumerate(episodes)):
            mask = torch.from_numpy(masks[episode.query])[None, None]
            truth = interpolate(mask, (33, 33), mode="nearest")[0, 0].numpy()
            margins = []
            for images, mask in zip(item["support"], item["support_mask"], strict=True):
                with torch.no_grad():
                    scores = model(item["query"][None], images[None], mask[None]).final[0]
                margins.append((scores[1] - scores[0]).numpy())
            predicted = np.where(np.max(margins, 0) > 0, np.argmax(margins, 0) + 1, 0)
            for label, class_id in enumerate(episode.classes, 1):
                found, true, valid = predicted == label, truth == class_id, truth != 255
                false = (found & ~true & valid).sum()
                sums[class_id] += (found & true).sum(), false, false * true.any(), (true & ~found).sum()
        for which, figure in ((2, "miou"), (1, "miou_everywhere")):
            ious = [hit / (hit + x[which] + x[3]) for x in sums.values() if (hit := x[0]) + x[which] + x[3]]
            assert run[figure] == pytest.approx(np.mean(ious), rel=1e-9)
    assert result["aggregate"]["miou"].mean == pytest.approx(np.mean([run["miou"] for run in result["runs"]]))
    assert [run["seed"] for run in result["runs"]] == [5, 6]


@pytest.mark.parametrize("first", ["novel", "base"])
def test_generalized(cfg: Config, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiclass, "NOVEL_THRESHOLD", 0.45)  # an untrained network is never sure
    model = network(cfg)
    result = multiclass.test_generalized(model, cfg, WORLD, first)
    present, masks = contents(cfg, "val")
    files, base = open_benchmark(cfg).base_files("val"), open_benchmark(cfg).wanted("train")
    run = result["runs"][0]
    sums: dict = defaultdict(lambda: np.zeros(2))
    episodes = draw_generalized(present, base, open_benchmark(cfg).wanted("val"), 1, 6, run["seed"], cfg.draw_workers)
    dataset = MultiEpisodes(episodes, present, files, cfg.val_size, "padded")
    for item, episode in ((dataset[i], episode) for i, episode in enumerate(episodes)):
        mask = masks[episode.query]
        height, width = mask.shape
        scale = 33 / max(mask.shape)
        inside = int(height * scale) // 8 * 8, int(width * scale) // 8 * 8
        assert (item["query"][:, inside[0] :] == 0).all() and (item["query"][:, :, inside[1] :] == 0).all()
        assert item["query"][:, : inside[0], : inside[1]].abs().sum(0).min() > 0
        square = np.full((max(mask.shape),) * 2, 255)
        square[:height, :width] = mask
        with torch.no_grad():
            query = model.embed_query(item["query"][None])
            final = model(item["query"][None], item["support"][0][None], item["support_mask"][0][None]).final
            logits = model.base_learner.classify(interpolate(query["f5"], (8, 8), mode="bilinear", align_corners=True))
        to_input = [interpolate(x, (33, 33), mode="bilinear", align_corners=True) for x in (final, logits)]
        final, logits = (interpolate(x, square.shape, mode="bilinear", align_corners=True)[0] for x in to_input)
        novel, label = (final.softmax(0)[1] > 0.45).numpy(), logits.argmax(0).numpy()
        classes = np.array([0, *base])[label]
        claims = novel if first == "novel" else novel & (label == 0)
        classes = np.where(claims, episode.classes[0], classes)
        for class_id in [*base, episode.classes[0]]:
            found, true = (classes == class_id) & (square != 255), square == class_id
            sums[class_id] += (found & true).sum(), (found | true).sum()
    for class_id, iou in run["class_iou"].items():
        hit, union = sums[class_id]
        assert iou == (hit / union if union else None)
    known = [iou for iou in run["class_iou"].values() if iou is not None]
    assert run["miou_all"] == pytest.approx(np.mean(known))


def test_seeds_and_mistakes(cfg: Config, tmp_path: Path) -> None:
    assert multiclass._seeds(cfg, (1, 2)) == [5, 6]
    assert multiclass._seeds(cfg.model_copy(update={"seeds": [321]}), (1, 2)) == (1, 2)
    other = cfg.model_copy(update={"test_set": "pascal"})
    with pytest.raises(UserError, match="--generalized: needs `ensemble: True`"):
        multiclass.test_generalized(build_model(cfg, pretrained=False), other, WORLD, "novel")


@pytest.mark.parametrize(("amp", "half"), [("auto", False), ("off", False), ("bf16", True)])
def test_the_precision_is_what_the_config_says(cfg: Config, amp: str, half: bool) -> None:
    seen: list[bool] = []
    model = build_model(cfg, pretrained=False)
    model.trunk.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    multiclass.test_ways(model, cfg.model_copy(update={"amp": amp, "test_episodes": 1}), WORLD, 2)
    assert {*seen} == {half}


def test_ways_refuse_networks_that_saw_their_classes(make_config: Any) -> None:
    cfg = make_config(data_set="coco", split=1)
    model = HMNet.__new__(HMNet)  # is not looked at
    with pytest.raises(UserError, match="--ways: its folds of COCO are those of `use_split_coco: False`"):
        multiclass.test_ways(model, cfg, WORLD, 2)
    for allowed in ({"use_split_coco": False}, {"allow_other_split": True}, {"test_set": "pascal"}):
        with pytest.raises(UserError, match="no such folder|is no folder|list file"):  # it goes on to the data
            multiclass.test_ways(model, cfg.model_copy(update=allowed), WORLD, 2)


@pytest.mark.parametrize("words", [["--ways", "2"], ["--generalized"], ["--generalized", "base"]])
def test_from_the_command_line(
    words: list[str], cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(cfg)
    (tmp_path / "toy.yaml").write_text(cfg.to_yaml())
    module = entry_point("test")
    module.main(evaluation_arguments(["--config", str(tmp_path / "toy.yaml"), *words]))
    (path,) = cfg.experiment_dir.glob("result_test_1shot_*.json")
    content = json.loads(path.read_text())
    assert content["kind"] == ("ways" if "--ways" in words else "generalized") and len(content["runs"]) == 2
    assert all(f"{figure} over 2 runs" in capsys.readouterr().out for figure in list(content["aggregate"])[:1])
    weights = str(cfg.experiment_dir / "snapshot/best_1shot.pth")
    others = ["--opts", "weight", weights, "split", "2"]
    with pytest.raises(UserError, match=r"best_1shot\.pth: by its path trained on split 1, not 2"):
        module.main(evaluation_arguments(["--config", str(tmp_path / "toy.yaml"), *words, *others]))
    listed = ["--opts", "episodes_file", weights]
    with pytest.raises(UserError, match="episodes_file: should be empty"):
        module.main(evaluation_arguments(["--config", str(tmp_path / "toy.yaml"), *words, *listed]))

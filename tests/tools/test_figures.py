"""Every figure from the command line, on random networks and made-up results; the numbers beside the images."""

import csv
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataset.dataset import EvaluationEpisodes
from dataset.index import ImageMaskStore
from engine.evaluation import make_episodes
from model.build import build_model
from model.released import load_weights
from tests.tools.paper.test_history import result, write, write_training
from tests.toy import toy_config, write_toy, write_weights
from tools.figures import describe, main, support_image
from tools.paper.analysis import enhancement, state_cosines, visits
from tools.paper.history import Course
from tools.paper.plots import draw_curves
from tools.paper.published import published
from util.config import Config
from util.errors import UserError
from util.image import MEAN, STD


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A toy experiment with random weights, its config in toy.yaml, and a second network below other/."""
    folder = tmp_path_factory.mktemp("figures")
    write_toy(folder / "toy")
    cfg = toy_config(folder, patch_ratio=2)
    (folder / "toy.yaml").write_text(cfg.to_yaml())
    write_weights(cfg)
    write_weights(toy_config(folder, patch_ratio=2, fusion="concat", exp=folder / "other"))
    return cfg


@pytest.fixture
def words(cfg: Config, tmp_path: Path) -> list[str]:
    return ["--config", str(Path(cfg.data_root).parent / "toy.yaml"), "--out", str(tmp_path)]


def read(folder: Path, name: str) -> dict[str, Any]:
    """The numbers of a figure, once both images have been seen to be some."""
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(folder / f"{name}.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    return json.loads((folder / f"{name}.json").read_text())


def network(cfg: Config) -> Any:
    model = build_model(cfg, pretrained=False).eval()
    load_weights(model, cfg.experiment_dir / "snapshot/best_1shot.pth")
    return model


def test_panels_of_two_networks(cfg: Config, words: list[str], tmp_path: Path) -> None:
    other = Path(cfg.data_root).parent / "other"
    main(["panels", *words, "--numbers", "5", "2", "--against-opts", "fusion", "concat", "exp", str(other)])
    content = read(tmp_path, "figure4")
    episodes = make_episodes(cfg, cfg.seeds[0], cfg.test_episodes).episodes
    assert [row["query"] for row in content["rows"]] == [episodes[5].query, episodes[2].query]
    assert list(content["rows"][0]["iou"]) == ["fusion hmnet", "fusion concat"]
    assert content["weights"][1].startswith(str(other))
    model, item = network(cfg), EvaluationEpisodes(cfg, *make_episodes(cfg, cfg.seeds[0], cfg.test_episodes))[5]
    with torch.inference_mode():
        scores = model(item["query"][None], item["support"][None], item["support_mask"][None]).final
    truth = item["query_mask"]
    scores = torch.nn.functional.interpolate(scores, size=truth.shape, mode="bilinear", align_corners=True)
    found, judged = scores[0].argmax(0) == 1, truth != 255
    iou = (found & (truth == 1)).sum() / ((found & judged) | (truth == 1)).sum()
    assert content["rows"][0]["iou"]["fusion hmnet"] == pytest.approx(float(iou), abs=0.02)


def test_panels_of_a_network_and_a_method_without_training(cfg: Config, words: list[str], tmp_path: Path) -> None:
    main(["panels", *words, "--count", "2", "--against-opts", "arch", "prototype"])
    content = read(tmp_path, "figure4")
    assert list(content["rows"][0]["iou"]) == ["arch hmnet", "arch prototype"] and content["weights"][1] is None


def test_figures_show_the_parts_of_images_that_count(cfg: Config) -> None:
    class Crops(ImageMaskStore):
        may_be_empty = True

        def image(self, name: str, max_side: int | None = None) -> np.ndarray:
            return super().image(name, max_side)[:20, :24]

        def read(self, name: str, class_id: int) -> np.ndarray:
            return super().read(name, class_id)[:20, :24]

    episode_set = make_episodes(cfg, cfg.seeds[0], cfg.test_episodes)
    episode_set = episode_set._replace(files=Crops(episode_set.files))
    item = EvaluationEpisodes(cfg, *episode_set)[0]
    seen = item["support"][0].permute(1, 2, 0).numpy() * STD + MEAN  # as the network has it
    outside = cv2.dilate(item["support_mask"][0].numpy(), np.ones((7, 7))) == 0  # outlines are drawn around the object
    assert outside.any() and np.abs(support_image(cfg, episode_set) - seen)[outside].max() < 1


@torch.inference_mode()
def test_states_with_and_without_recap(cfg: Config, words: list[str], tmp_path: Path) -> None:
    main(["states", *words, "--count", "3", "--names", "recap", "no recap"])
    content = read(tmp_path, "figure5")
    recap, plain = content["series"]["recap"], content["series"]["no recap"]
    assert [len(part) for part in (*recap.values(), *plain.values())] == [4, 4, 1, 4]
    assert recap["after_support"][0] == pytest.approx(plain["after_support"][0], abs=1e-3)  # one start, same weights
    assert content["published"] == published("figure5_hidden_state")
    model, dataset = network(cfg), EvaluationEpisodes(cfg, *make_episodes(cfg, cfg.seeds[0], cfg.test_episodes))
    maxima = [state_cosines(visits(model, dataset[number])[0])["after_query"][1][3] for number in (0, 2, 4)]
    assert recap["after_query"][3]["mean"] == pytest.approx(100 * fmean(map(float, maxima)), abs=1e-2)


def test_interception_with_and_without_qim(
    cfg: Config, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["interception", *words, "--count", "7"])
    printed = capsys.readouterr().out
    content = read(tmp_path, "figure7")
    block, mean, paper = content["rows"]
    assert (block["name"], paper["name"]) == ("block 2", "published")
    assert [paper[key]["mean"] for key in ("before", "without", "with")] == published("figure7_qim")
    assert {key: block[key] for key in ("before", "without", "with")} == {k: v for k, v in mean.items() if k != "name"}
    dataset = EvaluationEpisodes(cfg, *make_episodes(cfg, cfg.seeds[0], cfg.test_episodes))
    settings = {"with": {"qim": "share"}, "without": {"qim": "none", "srm": "basic"}}
    found = {}
    for key, setting in settings.items():
        model = network(cfg.model_copy(update=setting))
        found[key] = [one[1] for number in range(7) if (one := enhancement(model, dataset[number]))]
    for key, half, reading in (("before", "with", "u"), ("without", "without", "y"), ("with", "with", "y")):
        values = [100 * one[reading][0] for one in found[half]]
        assert block[key]["mean"] == pytest.approx(fmean(values), abs=1e-2)
        assert block[key]["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-2)
    for name, ones in zip(("srm recap, qim share", "srm basic, qim none"), found.values(), strict=True):
        for reading in ("residual", "LN", "u", "y", "y with u"):
            means = [100 * fmean(one[reading][place] for one in ones) for place in (0, 1)]
            drawn = content["readings"][name]["block 2"][reading]
            assert drawn == pytest.approx(means, abs=1e-2)
            assert f" {drawn[0]:.1f} ({drawn[1]:.1f}) |" in printed
    assert "have the same weights" in printed


def test_curves(tmp_path: Path) -> None:
    runs = [write_training(tmp_path / name) for name in ("first", "second")]
    main(["curves", *map(str, runs), "--out", str(tmp_path)])
    content = read(tmp_path, "curves")
    assert content["runs"]["second"]["loss"] == {"1": 0.8, "2": 1e-5}
    assert [row["epoch"] for row in content["runs"]["first"]["validations"]] == [1.5, 2]


def test_epochs_are_whole_numbers() -> None:
    figure = draw_curves({"one": Course(Path(), {8: 1.0}, {8: 0.5}, "IoU", [{"epoch": 8, "miou": 0.5}])})
    assert all(tick == round(tick) for axis in figure.axes for tick in axis.get_xticks())


def test_bars(tmp_path: Path) -> None:
    seeds = [result(0, [0.2, None]), result(1, [0.4, None])]
    runs = [write(tmp_path / "a/r.json", *seeds), write(tmp_path / "b/r.json", result(1, [0.5, 0.7, 0.9]))]
    main(["bars", *map(str, runs), "--out", str(tmp_path), "--names", "HMNet", "prior"])
    rows = read(tmp_path, "bars")["bars"]
    assert {(row["run"], row["class"]): row["iou"] for row in rows if row["class"] in "def"} == {
        ("HMNet", "d"): pytest.approx(30),
        ("HMNet", "e"): None,
        ("prior", "d"): 50,
        ("prior", "e"): 70,
        ("prior", "f"): 90,
    }
    with (tmp_path / "bars.csv").open() as file:
        assert [row["iou"] for row in csv.DictReader(file)][:2] == [str(rows[0]["iou"]), ""]


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("panels", [], "compares two networks: give --against FILE"),
        ("panels", ["--against-opts", "split", "1"], "split: 0 and 1: both need the same episodes"),
        ("panels", ["--against-opts", "width", "16", "--names", "one"], "--names one: should be 2 different names"),
        (
            "panels",
            ["--against-opts", "srm", "basic", "--numbers", "7"],
            "--numbers 7: the test has the episodes 0 to 6",
        ),
        ("states", ["--count", "0"], "--count 0: should be at least 1"),
        ("states", ["--opts", "exp", "nowhere"], "nowhere/.*best_1shot.pth: no such weights"),
        ("interception", ["--opts", "fusion", "concat"], "unexpected|missing|no hybrid"),
    ],
)
def test_mistakes_are_one_line(words: list[str], command: str, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([command, *words, *more])


def test_networks_are_named_by_their_differences(cfg: Config) -> None:
    other = cfg.model_copy(update={"ensemble": False, "fusion": "concat", "qim": "none", "print_freq": 3})
    assert describe(cfg, other) == ["fusion hmnet, ensemble true", "fusion concat, ensemble false"]
    assert describe(cfg, cfg) == [str(cfg.experiment_dir / "snapshot/best_1shot.pth")] * 2

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dataset.dataset import EvaluationEpisodes
from dataset.episode import write_episodes
from engine.evaluation import Outcome, Segment, make_episodes, run_episodes
from engine.results import Metrics
from model.build import build_model
from model.loss import episode_loss
from model.methods.hmnet import HMNet
from model.released import load_weights
from tests.processes import run_processes
from tests.toy import random_network, toy_config, write_toy, write_weights
from util.config import Config
from util.distributed import ProcessGroup, connect
from util.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy data set; whatever scanning it leaves in the user's cache goes there too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy")
    return tmp_path


ALONE = ProcessGroup(torch.device("cpu"))


def evaluate(model: HMNet, cfg: Config, seed: int, count: int) -> Metrics:
    return run_episodes(model, cfg, make_episodes(cfg, seed, count), ALONE, progress=False)


def plain(model: HMNet) -> Segment:
    return lambda query, support, mask, names: model(query, support, mask)


def without_times(result: Metrics) -> Metrics:
    return result.model_copy(update={"seconds": 0, "seconds_per_episode": 0})


def jaccard(pairs: list[tuple[Tensor, Tensor]]) -> list[float]:
    """IoU of background and foreground over all pairs of prediction and target."""
    from torchmetrics import JaccardIndex  # slow to import

    metric = JaccardIndex(task="multiclass", num_classes=2, ignore_index=255, average="none")
    for prediction, target in pairs:
        metric.update(prediction.flatten(), target.long().flatten())
    return metric.compute().tolist()


@pytest.mark.parametrize("shot", [1, 3])
def test_figures_are_those_of_a_plain_loop(folder: Path, shot: int, device: torch.device) -> None:
    cfg = toy_config(folder, shot=shot, test_episodes=9)
    model = random_network(cfg).eval()
    on_device = copy.deepcopy(model).to(device)
    episodes, files, classes = make_episodes(cfg, seed=5, count=9)
    dataset = EvaluationEpisodes(cfg, episodes, files, classes)
    pairs = []
    for number in range(len(episodes)):
        item = dataset[number]
        with torch.no_grad():
            scores = model(item["query"][None], item["support"][None], item["support_mask"][None]).final
        target = item["query_mask"]
        scores = interpolate(scores, target.shape, mode="bilinear", align_corners=True)
        pairs.append((scores[0].argmax(0), target))
    by_class = {c: [pair for e, pair in zip(episodes, pairs, strict=True) if e.class_id == c] for c in classes}
    assert set(classes) == {1, 2} and all(by_class.values())

    drawn, process_group = make_episodes(cfg, seed=5, count=9), ProcessGroup(device)
    result = run_episodes(on_device, cfg, drawn, process_group, segment=plain(on_device), progress=False)
    background, foreground = jaccard(pairs)
    assert result.fb_iou == pytest.approx((background + foreground) / 2, abs=1e-6)
    assert result.class_iou == pytest.approx({c: jaccard(by_class[c])[1] for c in classes}, abs=1e-6)
    assert result.episode_iou == pytest.approx([jaccard([pair])[1] for pair in pairs], abs=1e-6)
    assert 0 < result.seconds_per_episode * 9 <= result.seconds

    kept = run_episodes(on_device, cfg, drawn, process_group, progress=False)  # features of images kept
    assert kept.episode_iou == pytest.approx(result.episode_iou, abs=0.02)


def test_batches_and_loader_workers_change_nothing(folder: Path) -> None:
    cfg = toy_config(folder)
    model = random_network(cfg)
    alone = evaluate(model, cfg, seed=1, count=7)
    together = evaluate(model, toy_config(folder, batch_size_val=3, loader_workers=2), seed=1, count=7)
    assert together.episode_iou == pytest.approx(alone.episode_iou, abs=0.02)


def test_training_goes_on_as_if_nothing_had_been_evaluated(folder: Path) -> None:
    cfg = toy_config(folder)
    model = random_network(cfg).train()
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    evaluate(model, cfg, seed=1, count=3)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert pickle.dumps(np.random.get_state()) == before[2]
    assert model.training and model.trunk.training and not model.backbone.training

    images, masks = torch.randn(2, 2, 3, 33, 33), torch.randint(0, 2, (2, 2, 33, 33))
    classes = torch.zeros(2, dtype=torch.long)
    losses = episode_loss(model(images[0], images[1][:, None], masks[1][:, None], classes), masks[0])
    (losses["cross_entropy"] + losses["dice"]).backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())


def test_observer_sees_every_episode(folder: Path) -> None:
    cfg = toy_config(folder, shot=2, batch_size_val=2)
    model = random_network(cfg)
    seen: list[Outcome] = []
    episode_set = make_episodes(cfg, seed=2, count=5)
    result = run_episodes(model, cfg, episode_set, ALONE, observe=seen.append, progress=False)
    assert [outcome.number for outcome in seen] == list(range(5))
    assert [outcome.iou for outcome in seen] == result.episode_iou
    for outcome, episode in zip(seen, episode_set.episodes, strict=True):
        assert list(outcome.names) == [episode.query, *episode.support[::-1]]
        assert outcome.prediction.shape == outcome.truth.shape and outcome.support_mask.shape == (2, 33, 33)


def test_episodes_from_a_file(folder: Path) -> None:
    cfg = toy_config(folder)
    model = random_network(cfg)
    path = folder / "episodes.jsonl"
    write_episodes(path, make_episodes(cfg, seed=3, count=6).episodes)
    drawn = evaluate(model, cfg, seed=3, count=6)
    read = evaluate(model, toy_config(folder, episodes_file=path), seed=99, count=1)
    assert without_times(read) == without_times(drawn)
    with pytest.raises(UserError, match=r"episodes\.jsonl:1: 1 supports.*shot is 2"):
        evaluate(model, toy_config(folder, episodes_file=path, shot=2), seed=3, count=6)
    with pytest.raises(UserError, match=r"episodes\.jsonl:\d: .*split 1"):
        evaluate(model, toy_config(folder, episodes_file=path, split=1), seed=3, count=6)


def test_a_class_with_too_few_images_is_named(folder: Path) -> None:
    cfg = toy_config(folder, shot=50)
    with pytest.raises(UserError, match=r"class 1: \d+ images"):
        evaluate(random_network(cfg), cfg, seed=3, count=6)


def evaluate_saved(cfg: Config) -> Metrics:
    """The figures of saved weights, with the features of images kept, in this process of several."""
    with connect(cfg.device) as process_group:
        model = build_model(cfg, pretrained=False)
        load_weights(model, cfg.experiment_dir / "snapshot" / "best_1shot.pth")
        return without_times(run_episodes(model, cfg, make_episodes(cfg, 4, 7), process_group, progress=False))


@pytest.mark.parametrize("batch", [1, 2])
def test_any_number_of_processes_gives_the_same_figures(folder: Path, batch: int) -> None:
    cfg = toy_config(folder, batch_size_val=batch)
    write_weights(cfg)
    (expected,) = run_processes(1, evaluate_saved, cfg)
    assert 0 < expected.miou < 1
    for size in (2, 3):  # neither divides the seven episodes
        assert run_processes(size, evaluate_saved, cfg) == [expected] * size


@pytest.mark.slow
def test_more_processes_than_episodes(folder: Path) -> None:
    cfg = toy_config(folder)
    write_weights(cfg)
    assert run_processes(8, evaluate_saved, cfg) == run_processes(1, evaluate_saved, cfg) * 8

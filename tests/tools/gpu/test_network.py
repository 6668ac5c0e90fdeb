"""The network's checks on the CPU: they pass there, and they fail where something is wrong."""

import pytest
import torch

from tools.gpu import network
from tools.gpu.setting import CheckError, CheckSetting
from tools.memory import StepMemory

CPU = CheckSetting(torch.device("cpu"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch.compile, and few steps and episodes."""
    monkeypatch.setattr(network, "MODES", ("float32", "bf16"))
    monkeypatch.setattr(network, "STEPS", 16)
    monkeypatch.setattr(network, "EPISODES", 16)


def test_generated_episodes() -> None:
    first, again, other = (network.generate_episodes(3, 33, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.query, other.query)
    assert first.query.shape == (3, 3, 33, 33) and first.support_mask.shape == (3, 1, 33, 33)
    for mask in (*first.query_mask, *first.support_mask[:, 0]):
        assert 0.01 < mask.float().mean() < 0.6 and set(mask.unique().tolist()) == {0, 1}


def test_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with network.precision("tf32", CPU.device):
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    with network.precision("bf16", CPU.device):
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.usefixtures("quick")
def test_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = network.check_scores(CPU)["errors"]
    assert [row["mode"] for row in rows] == ["float32", "bf16"]
    assert rows[0]["final"] < 1e-5 < rows[1]["final"]
    monkeypatch.setattr(network, "TOLERANCE", {"float32": 1e-3, "bf16": 1e-6})
    with pytest.raises(CheckError, match="scores of bf16 are too far off"):
        network.check_scores(CPU)


@pytest.mark.usefixtures("quick")
def test_training_and_resuming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MODES", ("float32",))
    (row,) = network.check_training(CPU)["steps"]
    assert row["last loss"] < row["first loss"] and row["after resuming"] < 1e-4
    monkeypatch.setattr(network.Trainer, "restore", lambda trainer, state: None)
    with pytest.raises(CheckError, match="after resuming differ"):
        network.check_training(CPU)


@pytest.mark.usefixtures("quick")
def test_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = network.check_evaluation(CPU)
    assert figures["mIoU on the device"] == figures["mIoU on the CPU"] > 0.001
    devices = iter((0.0, 0.002))
    monkeypatch.setattr(network, "_miou", lambda *_: next(devices))
    with pytest.raises(CheckError, match="mIoU"):
        network.check_evaluation(CPU)


def test_miou() -> None:
    """By a loop over the episodes."""
    episodes = network.generate_episodes(12, 33, seed=3)
    prediction = torch.rand(12, 33, 33) > 0.6
    counts = {colour: [0, 0] for colour in range(4)}
    for p, t, colour in zip(prediction, episodes.query_mask == 1, episodes.left_out.tolist(), strict=True):
        counts[colour][0] += int((p & t).sum())
        counts[colour][1] += int((p | t).sum())
    assert network._miou(prediction, episodes) == pytest.approx(sum(i / u for i, u in counts.values()) / 4, rel=1e-5)


def test_peak_memory_is_counted_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = StepMemory(1 * 2**30, 20 * 2**30, 24 * 2**30)
    monkeypatch.setattr(network, "step_memory", lambda cfg: memory)
    rows = network.check_peak_memory(CPU)["training step of two episodes"]
    assert [(row["size"], row["mode"]) for row in rows] == [(473, "float32"), (633, "float32"), (633, "fp16")]
    assert all((row["kept GB"], row["saved GB"], row["peak GB"]) == (1, 20, 24) for row in rows)
    monkeypatch.setattr(network, "step_memory", lambda cfg: memory._replace(peak=33 * 2**30))
    with pytest.raises(CheckError, match=r"33\.0 GB, more than 32"):
        network.check_peak_memory(CPU)


@pytest.mark.slow
def test_processes() -> None:
    rows = network.check_processes(CPU)["gradients"]
    assert [(row["processes"], row["rank"]) for row in rows] == [(1, 0), (2, 0), (2, 1)]


def test_gradients_are_a_mean_over_episodes() -> None:
    cfg = network.config(CPU)
    episodes = network.generate_episodes(4, 33, seed=5)
    whole = network._gradients(cfg, CPU.device, episodes)
    parts = [network.Episodes(*(x[a : a + 2] for x in episodes)) for a in (0, 2)]
    halves = [network._gradients(cfg, CPU.device, part) for part in parts]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2, rtol=1e-3, atol=1e-6)

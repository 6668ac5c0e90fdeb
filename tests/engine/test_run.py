"""The mechanics of a run, on a linear network with dropout; tests/test_train.py has the real ones."""

import json
import os
import pickle
import random
import re
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from engine.learner import Learner, Output
from engine.loader import StepPlan, load_steps
from engine.optim import make_sgd, make_trunk_adamw, poly_rate, set_rates
from engine.run import Paths, Progress, Run
from engine.snapshot import read_snapshot, snapshots
from tests.processes import run_processes, start_processes
from util.checkpoint import read_checkpoint
from util.config import Config, load_config
from util.distributed import World, connect
from util.errors import UserError
from util.failures import explain_errors
from util.rng import seed_all

ITEMS, STEPS, EPOCHS = 14, 3, 3
Observe = Callable[[Run], None]


class Points(Dataset[dict[str, Any]]):
    """Items that depend on the epoch, as augmented ones do."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, item: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 * self.epoch + item)
        points, labels = torch.randn(6, 4, generator=generator), torch.randint(0, 2, (6,), generator=generator)
        return {"points": points, "label": labels, "names": [f"item{item}"]}


def collate(items: list[dict]) -> dict:
    batch = {key: [item[key] for item in items] for key in items[0]}
    return {**batch, "points": torch.stack(batch["points"]), "label": torch.stack(batch["label"])}


def forward(network: nn.Module, batch: dict[str, Tensor]) -> Output:
    logits, label = network(batch["points"]).flatten(0, 1), batch["label"].flatten()
    loss = nn.functional.cross_entropy(logits, label)
    accuracy = torch.stack([(logits.argmax(1) == label).sum(), torch.tensor(len(label))])
    losses = {"cross_entropy": loss, "dice": logits.square().mean()}
    return Output(losses, {"foreground IoU": accuracy, "points": torch.tensor([len(label), 100])}, {"dice"})


def drive(
    folder: Path, observe: Observe = lambda run: None, scores: list[float] | None = None, **keys: object
) -> dict[str, Any]:
    """A whole run, shaped as those in train.py and train_base.py; the last snapshot."""
    cfg = config(folder, **keys)
    with connect("cpu") as world:
        run = build(cfg, world, folder)
        with run.started():
            for epoch in run.epochs():
                for batches in run.batches(Points(epoch), collate):
                    set_rates(run.learner.optimizers["rest"], poly_rate(0.05, run.iteration, run.iterations, 0.9), 0)
                    report = run.learner.accumulate(batches, forward, target="label")
                    observe(run)
                    run.stepped(report, 0.05, run.learner.step())
                run.validate(epoch, partial(measure, run, epoch, scores))
        return last_snapshot(folder)


def measure(run: Run, epoch: int, scores: list[float] | None) -> dict[str, float]:
    torch.rand(random.randint(1, 9))  # whatever validation draws, training must not notice
    weight = next(iter(run.learner.model.parameters()))
    return {"miou": scores[epoch - 1] if scores else weight.abs().mean().item()}


def config(folder: Path, **keys: object) -> Config:
    settings = {"exp": folder, "loader_workers": 0, "epochs": EPOCHS, "print_freq": 2, "device": "cpu", **keys}
    words = [str(word) for pair in settings.items() for word in pair]
    return load_config(Path(__file__).parents[2] / "config/base/pascal.yaml", words)


def build(cfg: Config, world: World, folder: Path) -> Run:
    seed_all(cfg.manual_seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    optimizers = {
        "rest": make_sgd([model[0].parameters()], 0.9, 1e-4),
        "trunk": make_trunk_adamw(model[2], 0.01, 2, 0.01),
    }
    learner = Learner(model, optimizers, world, cfg.amp, max_skipped=cfg.max_skipped_steps)
    plan = StepPlan(ITEMS, cfg.batch_size, cfg.accumulate, world).check("batch_size")
    paths = Paths(folder, best=folder / "snapshot" / "best_1shot.pth", numbered="train")
    return Run(cfg, paths, plan, learner, cfg.epochs, cfg.stop_interval)


def last_snapshot(folder: Path) -> dict[str, Any]:
    return read_snapshot(list(snapshots(folder / "snapshot", "state").values())[-1])


def assert_same(one: object, other: object, where: str = "") -> None:
    """Bit for bit, whatever is inside."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where  # type: ignore[arg-type]
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where  # type: ignore[attr-defined]
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")  # type: ignore[index]
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where  # type: ignore[arg-type]
        for number, (a, b) in enumerate(zip(one, other, strict=True)):  # type: ignore[call-overload]
            assert_same(a, b, f"{where}/{number}")
    else:
        assert one == other, where


def signal_at(step: int, number: signal.Signals = signal.SIGTERM) -> Observe:
    """Send this process a signal in the middle of a step of the run, counted over epochs."""

    def observe(run: Run) -> None:
        if run.iteration == step:
            os.kill(os.getpid(), number)

    return observe


KEYS: dict[str, Any] = {"batch_size": 2, "accumulate": 2}  # 14 items: three steps an epoch, two items left over


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The uninterrupted run and its last snapshot."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, drive(folder, **KEYS)


@pytest.mark.parametrize("step", [0, 2, 4, 8])  # the first, one before a validation, in mid-epoch, the last
def test_a_signal_at_any_step_loses_nothing(tmp_path: Path, whole: tuple[Path, dict[str, Any]], step: int) -> None:
    with pytest.raises(SystemExit) as stop:
        drive(tmp_path, signal_at(step, random.choice([signal.SIGTERM, signal.SIGINT])), **KEYS)
    assert stop.value.code == 75
    progress = last_snapshot(tmp_path)["progress"]
    assert (progress["epoch"], progress["step"]) == (step // STEPS + 1, step % STEPS + 1)
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))
    for name in ("result.json", "snapshot/best_1shot.pth"):
        assert_same(read(whole[0] / name), read(tmp_path / name))


def assert_end(whole: tuple[Path, dict[str, Any]], resumed: dict[str, Any]) -> None:
    """The run ended as the uninterrupted one; its folder's name in the config aside."""
    assert_same({**whole[1], "config": None}, {**resumed, "config": None})


def read(path: Path) -> dict[str, Any]:
    if path.suffix == ".pth":
        return read_checkpoint(path)
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "weights"}


def test_a_snapshot_of_nameless_sums_goes_on(tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    """Written when a run knew two losses and one figure, in a list."""
    with pytest.raises(SystemExit):
        drive(tmp_path, signal_at(4), **KEYS)
    (path,) = (path for place, path in snapshots(tmp_path / "snapshot", "state").items() if place == (2, 2))
    content = read_snapshot(path)
    progress = content["progress"]
    losses, figures = progress.pop("losses"), progress.pop("figures")
    progress["sums"] = [losses["cross_entropy"][0], losses["dice"][0], *figures["foreground IoU"]]
    torch.save(content, path)
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))
    lines = [
        re.findall(r"epoch 2 mean loss \S+ foreground IoU \d\.\d+", (f / "log.txt").read_text())
        for f in (tmp_path, whole[0])
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 1


def test_older_progress_by_name() -> None:
    meta = Progress.read({"epoch": 3, "step": 4, "sums": [2.0, 1.0, 30, 60]})
    assert meta.losses == {"cross_entropy": [2.0, 4], "dice": [1.0, 4]} and meta.figures == {"foreground IoU": [30, 60]}
    base = Progress.read({"epoch": 3, "step": 4, "sums": [2.0, 0.0, 30, 60]})
    assert base.losses == {"cross_entropy": [2.0, 4]} and base.figures == {"pixel accuracy": [30, 60]}
    assert Progress.read({"epoch": 3, "step": 0, "sums": [0.0] * 4}) == Progress(epoch=3)


def test_a_finished_run_is_not_run_again(whole: tuple[Path, dict[str, Any]]) -> None:
    steps: list[int] = []
    assert_end(whole, drive(whole[0], lambda run: steps.append(1), resume="auto", **KEYS))
    assert steps == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_a_run_that_waits_for_a_batch(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    intact, main = Points.__getitem__, os.getpid()

    def endless(points: Points, item: int) -> dict[str, Any]:
        if points.epoch == 2 and (tmp_path / "waits").exists():
            os.kill(main, signal.SIGTERM)
            time.sleep(600)
        return intact(points, item)

    def look(run: Run) -> None:
        if run.iteration == STEPS - 1:
            (tmp_path / "waits").touch()

    monkeypatch.setattr(Points, "__getitem__", endless)
    monkeypatch.setattr("engine.run.load_steps", lambda *arguments: load_unchecked(monkeypatch, *arguments))
    start = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        drive(tmp_path, look, loader_workers=workers, **KEYS)
    assert stop.value.code == 75 and time.monotonic() - start < 60
    assert max(snapshots(tmp_path / "snapshot", "state")) == (2, 0)
    (tmp_path / "waits").unlink()
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def load_unchecked(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """Without the first item being measured in the main process."""
    with monkeypatch.context() as patch:
        patch.setattr("engine.loader.item_bytes", lambda dataset, item: 1)
        return load_steps(*arguments)


def test_a_signal_ends_a_validation(tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    """At once, as everything was saved before it."""
    intact = measure

    def endless(run: Run, epoch: int, scores: list[float] | None) -> dict[str, float]:
        if epoch == 2 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            torch.rand(5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return intact(run, epoch, scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "measure", endless)
        with pytest.raises(SystemExit) as stop:
            drive(tmp_path, **KEYS)
        assert stop.value.code == 75
        assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def two_processes(folder: Path, step: int | None, keys: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(os.getpid())  # nothing may depend on what was before
    return drive(folder, signal_at(-1 if step is None else step), **keys)


def test_two_processes_go_on_with_both_random_states(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"batch_size": 2, "accumulate": 1}
    step = random.randrange(STEPS * EPOCHS)
    whole = run_processes(2, two_processes, tmp_path / "whole", None, keys)
    assert run_processes(2, two_processes, tmp_path / "parts", step, keys) == [75, 75]
    resumed = run_processes(2, two_processes, tmp_path / "parts", None, {**keys, "resume": "auto"})
    assert_end((tmp_path, whole[0]), resumed[0])
    one, other = whole[0]["rng"]
    assert not torch.equal(one["torch"], other["torch"])


def test_snapshots_by_minutes_and_by_epochs(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def look(run: Run) -> None:
        seen.append(max(snapshots(tmp_path / "snapshot", "state"), default=(0, 0)))

    drive(tmp_path, look, save_minutes=1e-9, keep=3, **KEYS)
    assert seen == [(0, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)]
    assert list(snapshots(tmp_path / "snapshot", "state")) == [(3, 2), (3, 3), (4, 0)]
    seen.clear()
    drive(tmp_path, look, save_freq=2, epochs=3, **KEYS)
    assert seen[6:] == [(3, 0)] * 3


def test_weights_of_an_earlier_training_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = tmp_path / "snapshot" / "best_1shot.pth"
    for scores in ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3], [0.6, 0.7, 0.1]):
        drive(tmp_path, scores=scores, **KEYS)
    kept = [best.with_name(f"best_1shot{name}.pth") for name in ("_earlier1", "_earlier2", "")]
    assert [read_checkpoint(path)["miou"] for path in kept] == [0.5, 0.3, 0.7]
    assert f"WARNING {best}: weights of an earlier training, kept as best_1shot_earlier2.pth" in capsys.readouterr().out


def test_weights_published_twice_are_not_kept_twice(tmp_path: Path) -> None:
    """A run killed between its first best weights and its next snapshot validates once more."""
    drive(tmp_path, scores=[0.5, 0.4, 0.3], epochs=1, **KEYS)
    state = tmp_path / "snapshot" / "state_0001_000003.pth"  # from before the validation
    assert state.is_file()
    for path in snapshots(tmp_path / "snapshot", "state").values():
        if path != state:
            path.unlink()
    drive(tmp_path, scores=[0.5, 0.4, 0.3], resume=state, epochs=1, **KEYS)
    assert [path.name for path in (tmp_path / "snapshot").glob("best*")] == ["best_1shot.pth"]


def test_only_the_best_is_published(tmp_path: Path) -> None:
    drive(tmp_path, scores=[0.25, 0.5, 0.4], **KEYS)
    assert sorted(path.name for path in (tmp_path / "snapshot").glob("[bt]*")) == [
        *("best_1shot.pth", "train_epoch_1_0.5000.pth")
    ]
    content = read_checkpoint(tmp_path / "snapshot" / "best_1shot.pth")
    assert content["epoch"] == 2 and content["trained_on"]["split"] == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["miou"], result["epoch"], result["epochs"], result["finished"]) == (0.5, 2, 3, True)
    assert [entry["miou"] for entry in result["validations"]] == [0.25, 0.5, 0.4]


def test_what_a_killed_process_had_begun_to_write_goes(tmp_path: Path) -> None:
    half = {".state_0001_000002.pth.5.tmp", ".best_1shot.pth.5.tmp", ".train_epoch_1_0.5000.pth.5.tmp"}
    foreign = {".state_train5_0001_000002.pth.5.tmp", ".best_5shot.pth.5.tmp"}
    (tmp_path / "snapshot").mkdir()
    for name in half | foreign:
        (tmp_path / "snapshot" / name).touch()
    drive(tmp_path, epochs=1, **KEYS)
    assert {path.name for path in (tmp_path / "snapshot").glob(".*")} == foreign


def test_early_stop(tmp_path: Path) -> None:
    scores = [0.1, 0.3, 0.2, 0.3, 0.9]
    assert drive(tmp_path, scores=scores, epochs=5, stop_interval=2, **KEYS)["progress"]["epoch"] == 5
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 4


def test_the_config_of_a_run_can_be_read_back(tmp_path: Path) -> None:
    drive(tmp_path, **KEYS)
    assert load_config(tmp_path / "config.yaml") == config(tmp_path, **KEYS)


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    with pytest.raises(UserError) as error:
        drive_with_poison(tmp_path)
    line = str(error.value)
    assert "\n" not in line
    names = re.findall(r"item\d+", line)
    plan = StepPlan(ITEMS, 2, 2, World(torch.device("cpu")))
    assert names == [f"item{number}" for batch in plan.batches(321 + 2, first_step=1)[:2] for number in batch]
    assert str(tmp_path / "snapshot" / "state_0002_000001.pth") in line
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def drive_with_poison(folder: Path) -> None:
    """A run in whose data a NaN stands at one step."""
    plan, intact = StepPlan(ITEMS, 2, 2, World(torch.device("cpu"))), Points.__getitem__
    bad = {number for batch in plan.batches(321 + 2, first_step=1)[:2] for number in batch}

    def poisoned(points: Points, item: int) -> dict[str, Any]:
        found = intact(points, item)
        return {**found, "points": found["points"] * torch.nan} if points.epoch == 2 and item in bad else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Points, "__getitem__", poisoned)
        drive(folder, **KEYS)


@pytest.mark.parametrize("resume", ["gone.pth", "cut.pth", "weights.pth"])
def test_bad_snapshots(tmp_path: Path, whole: tuple[Path, dict[str, Any]], resume: str) -> None:
    path = list(snapshots(whole[0] / "snapshot", "state").values())[-1]
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:-200])
    torch.save({"state_dict": {}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"\A[^\n]*{re.escape(str(tmp_path / resume))}[^\n]*\Z"):
        drive(tmp_path, resume=tmp_path / resume, **KEYS)


def on_a_full_disk(folder: Path, room: int) -> str:
    """The error of a run that may write no file of more bytes than `room`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    with pytest.raises(UserError) as error:
        drive(folder, save_minutes=1e-9, resume="auto", **KEYS)
    return str(error.value)


def test_a_full_disk_leaves_the_last_snapshot_as_it_was(tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(SystemExit):
        drive(tmp_path, signal_at(4), **KEYS)
    before = sorted((tmp_path / "snapshot").iterdir())
    size = max(path.stat().st_size for path in before)
    (line,) = run_processes(1, on_a_full_disk, tmp_path, size - 1)
    assert re.fullmatch(r"[^\n]*state_0002_000003\.pth: cannot write[^\n]*free some space[^\n]*", line)
    assert sorted((tmp_path / "snapshot").iterdir()) == before
    assert_end(whole, drive(tmp_path, resume="auto", **KEYS))


def lose_partner(folder: Path) -> str:
    """What the first process says when the second one is killed in mid-epoch."""

    def kill_second(run: Run) -> None:
        if run.world.rank == 1 and run.iteration == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError) as error, explain_errors():
        drive(folder, kill_second, save_minutes=1e-9, batch_size=2, accumulate=1)
    return str(error.value)


def test_a_dead_partner_is_told_in_one_line(tmp_path: Path) -> None:
    processes, queue = start_processes(2, lose_partner, tmp_path)
    rank, line, error = queue.get(timeout=60)
    assert (rank, error) == (0, None)
    assert re.fullmatch(r"lost contact with another process, [^\n]*resume auto[^\n]*", pickle.loads(line))
    for process in processes:
        process.join(timeout=10)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    assert list(snapshots(tmp_path / "snapshot", "state"))[-1] == (2, 1)


def test_a_snapshot_of_other_steps_is_refused(tmp_path: Path) -> None:
    drive(tmp_path, **KEYS)
    with pytest.raises(UserError, match="was written with 4 of 14 items a step, now it is 6 of 14; keep batch_size"):
        drive(tmp_path, resume="auto", batch_size=3, accumulate=2)


def test_other_settings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive(tmp_path, **KEYS)
    drive(tmp_path, resume="auto", base_lr=0.5, **KEYS)
    assert "WARNING" in (out := capsys.readouterr().out) and "base_lr 0.005 -> 0.5" in out


def test_a_truncated_snapshot_is_skipped(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        drive(tmp_path, signal_at(5), save_minutes=1e-9, keep=9, **KEYS)
    *_, path = snapshots(tmp_path / "snapshot", "state").values()
    path.write_bytes(path.read_bytes()[:999])
    resumed = drive(tmp_path, resume="auto", **KEYS)
    assert f"WARNING skipped {path}" in capsys.readouterr().out
    assert_end(whole, resumed)


def test_mixed_precision_goes_on_with_its_scale(tmp_path: Path) -> None:
    whole = tmp_path, drive(tmp_path, amp="fp16", **KEYS)
    with pytest.raises(SystemExit):
        drive(tmp_path / "parts", signal_at(4), amp="fp16", **KEYS)
    assert_end(whole, drive(tmp_path / "parts", amp="fp16", resume="auto", **KEYS))
    assert whole[1]["scaler"]["_growth_tracker"] > 0


def test_a_run_that_starts_behind_its_end_is_refused(tmp_path: Path) -> None:
    message = rf"start_epoch: {EPOCHS} should be below the number of epochs \({EPOCHS}\)"
    with pytest.raises(UserError, match=message):
        build(config(tmp_path, start_epoch=EPOCHS), World(torch.device("cpu")), tmp_path)

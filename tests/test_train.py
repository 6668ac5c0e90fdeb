"""Both training stages on the toy data set, as their entry points run them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import train
import train_base
from dataset.dataset import BaseImages
from engine.snapshot import read_snapshot, snapshots
from model.build import build_base_learner, build_model
from model.inference import fold_batch_norms
from model.released import load_weights
from model.resize import resize
from tests.processes import free_port, run_processes, start_processes
from tests.toy import ROOT, toy_config, write_toy
from util.checkpoint import read_checkpoint
from util.config import Config, load_config
from util.distributed import ProcessGroup, connect
from util.errors import UserError
from util.failures import explain_errors

SHORT = {"epochs": 2, "val_start_epoch": 1, "val_episodes": 4, "batch_size": 3, "deterministic": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy data set with a base learner, and what training it wrote."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(train_base, "base_miou", lambda cfg: 71.43)  # as if it were published
        write_toy(folder / "toy", val=16)
        run(train_base.train, toy_config(folder, base_epochs=1, base_batch_size=4))
        yield folder


def config(data: Path, exp: Path, **keys: object) -> Config:
    return toy_config(data, exp=exp, **{**SHORT, **keys})


def run(stage: Any, cfg: Config, *arguments: Any) -> None:
    """What the entry point does after parsing."""
    torch.set_num_threads(1)
    with explain_errors(), connect(cfg.device) as process_group:
        stage(cfg, process_group, *arguments)


def last_weights(cfg: Config) -> dict[str, Tensor]:
    return read_snapshot(list(snapshots(cfg.experiment_dir / "snapshot", "state").values())[-1])["state_dict"]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a finished, uninterrupted run with its curves."""
    cfg = config(data, tmp_path_factory.mktemp("whole"))
    run(train.train, cfg, True)
    return cfg


def test_what_a_run_leaves(whole: Config) -> None:
    folder = whole.experiment_dir
    result = json.loads((folder / "result.json").read_text())
    assert [entry["epoch"] for entry in result["validations"]] == [0.5, 1, 1.5, 2]
    assert {"miou", "fb_iou"} <= result["validations"][0].keys()
    assert result["miou"] == max(entry["miou"] for entry in result["validations"])
    assert load_config(folder / "config.yaml") == whole
    log = (folder / "log.txt").read_text()
    watched = "".join(rf"{size}/{part} [\d.e-]+,? " for size in ("gradient", "update") for part in ("rest", "trunk"))
    assert re.search(rf"epoch 2/2 step \d+/\d+ loss \d\S+ \(cross_entropy \S+ \+ dice \S+\), {watched}", log)
    assert re.search(r"epoch 2 mean loss \S+ foreground IoU 0\.\d+, foreground share 0\.\d+\n", log)
    board = b"".join(path.read_bytes() for path in (folder / "tensorboard").iterdir())
    for tag in ("train/foreground_IoU", "train/foreground_share", "train/gradient/trunk", "train/update/rest"):
        assert tag.encode() in board
    panels = set(re.findall(rb"novel/(\d{5})_thing[12]", board))
    assert len(panels) == 4 and board.count(b"\x89PNG") == 16  # four of four episodes, in each of four validations
    best = f"train_epoch_{result['epoch'] - 1:g}_{result['miou']:.4f}.pth"
    names = {path.name for path in (folder / "snapshot").iterdir()}
    assert names - {path.name for path in snapshots(folder / "snapshot", "state").values()} == {best, "best_1shot.pth"}
    assert_same(*(read_checkpoint(folder / "snapshot" / name)["state_dict"] for name in (best, "best_1shot.pth")))


def test_the_best_weights_load_and_have_released_names(whole: Config) -> None:
    path = whole.experiment_dir / "snapshot" / "best_1shot.pth"
    load_weights(build_model(whole, pretrained=False), path)
    keys = read_checkpoint(path)["state_dict"].keys()
    assert {"down_query.0.weight", "layer0.0.weight", "gram_merge.weight"} <= keys


def test_training_moves_what_it_should(whole: Config) -> None:
    torch.manual_seed(whole.manual_seed)
    fresh, after = build_model(whole), last_weights(whole)
    base = read_checkpoint(whole.base_learner_path)["state_dict"]
    assert torch.equal(after["backbone.layer0.0.weight"], base["layer0.0.weight"])
    for name, value in after.items():
        if name.startswith(("backbone.", "base_learner.")):
            assert torch.equal(value, fresh.state_dict()[name]), name
    moved = {name for name in after if not torch.equal(after[name], fresh.state_dict()[name])}
    assert {"embedding.query.0.weight", "decoder.classifier.3.weight", "trunk.blocks.0.scan.A_log"} <= moved


def test_a_run_on_cached_crops_resumes_to_the_bit(data: Path, tmp_path: Path) -> None:
    keys = {"cached_crops": 2, "crop_folder": tmp_path / "crops", "evaluate": False, "save_freq": 1, "resume": "auto"}
    cfg = config(data, tmp_path / "exp", **keys)
    states = []
    for _ in range(2):
        run(train.train, cfg)
        last = list(snapshots(cfg.experiment_dir / "snapshot", "state").values())[-1]
        states.append(read_snapshot(last)["state_dict"])
        last.unlink()  # the second time only the second epoch is trained
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    published = read_checkpoint(cfg.experiment_dir / "snapshot" / "best_1shot.pth")  # nothing validated: the last
    assert (published["miou"], published["epoch"]) == (None, cfg.epochs)


@pytest.mark.parametrize(("fixed", "draws"), [(True, 1), (False, 2)])
def test_runs_are_the_same_to_the_bit_and_draw_again_when_the_seed_of_validation_moves(
    whole: Config, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool, draws: int
) -> None:
    called: list[str] = []
    for function in (train.load_index, train.make_episodes):

        def counted(*arguments: Any, function: Any = function) -> Any:
            called.append(function.__name__)
            return function(*arguments)

        monkeypatch.setattr(train, function.__name__, counted)
    monkeypatch.setattr("engine.evaluation.load_index", lambda *_: pytest.fail("scanned again"))
    torch.rand(7)
    cfg = config(data, tmp_path, fix_random_seed_val=fixed)
    run(train.train, cfg)
    assert called == ["load_index"] * 2 + ["make_episodes"] * draws  # two epochs, validated twice each
    assert_same(last_weights(cfg), last_weights(whole))
    if fixed:
        best = [c.experiment_dir / "snapshot" / "best_1shot.pth" for c in (cfg, whole)]
        assert_same(*(read_checkpoint(path)["state_dict"] for path in best))


def test_a_base_class_without_images_is_left_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every training image of class 8 shows a novel class too, so none is left of it."""
    shutil.copytree(data / "toy", tmp_path / "toy")
    masks = tmp_path / "toy" / "SegmentationClassAug"
    for mask in masks.glob("train*.png"):
        values = np.array(Image.open(mask))
        if (values == 8).any():
            values[1, 1] = 1  # class 1 is novel, and one pixel of it is enough
            Image.fromarray(values).save(mask)
    cfg = config(tmp_path, tmp_path, epochs=1, SubEpoch_val=False, initmodel=data / "initmodel", batch_size=2)
    run(train.train, cfg)
    printed = capsys.readouterr().out
    assert printed.count("left out of the draw, as no training image shows enough of them: 8 thing8") == 1


def test_more_shots_share_the_folder_with_one(data: Path, tmp_path: Path) -> None:
    cfg = config(data, tmp_path, shot=2, epochs=1, SubEpoch_val=False, arch="HMNetAMP", batch_size=2, accumulate=2)
    run(train.train, cfg)
    result = json.loads((cfg.experiment_dir / "result_train2.json").read_text())
    names = sorted(path.name for path in (cfg.experiment_dir / "snapshot").iterdir())
    assert names[0] == "best_2shot.pth" and names[-1] == f"train2_epoch_0_{result['miou']:.4f}.pth"
    assert all(name.startswith("state_train2_0") for name in names[1:-1])
    assert (cfg.experiment_dir / "config_train2.yaml").exists() and (cfg.experiment_dir / "log_train2.txt").exists()


def test_the_base_learner_is_what_stage_two_and_others_load(data: Path) -> None:
    cfg = toy_config(data)
    state = read_checkpoint(cfg.base_learner_path)["state_dict"]
    load_weights(build_base_learner(cfg, pretrained=False), state)
    stages = [key for key in state if re.match(r"layer\d\.", key)]
    assert all(torch.equal(state[key], state[f"encoder.{key[5:]}"]) for key in stages)
    others = {key.split(".")[0] for key in state} - {f"layer{stage}" for stage in range(5)}
    assert len(stages) > 50 and others == {"encoder", "ppm", "cls"}
    folder = Path(cfg.exp) / "toy/PSPNet/split0/tiny"
    result = json.loads((folder / "result.json").read_text())
    assert result["finished"] and result["weights"] == str(cfg.base_learner_path)
    told = f"mIoU of the base classes: {100 * result['miou']:.2f}, published 71.43\n"
    assert told in (folder / "log.txt").read_text()


def test_the_base_learner_is_validated_as_it_is_tested(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded, channels last and under autocast, with the figures of the plain network."""
    cfg, seen, types = toy_config(data, batch_size_val=3), [], []
    model = build_base_learner(cfg, pretrained=False)
    classifier, dataset = model.head.classifier, BaseImages(cfg, "val")
    nn.init.normal_(classifier.weight)
    with torch.no_grad():  # every class gets its share of the pixels, or background might be all that it sees
        images = torch.stack([dataset[number]["image"] for number in range(4)])
        classifier.bias -= model.eval()(images).mean((0, 2, 3))

    def fold(network: Any) -> None:
        seen.append(network)
        network.head.classifier.register_forward_hook(lambda layer, given, scores: types.append(scores.dtype))
        fold_batch_norms(network)

    monkeypatch.setattr(train_base, "fold_batch_norms", fold)
    process_group = ProcessGroup(torch.device("cpu"))
    found = train_base.measure(model.train(), cfg, process_group, dataset)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in seen[0].modules()) and model.training
    assert seen[0].head.conv.weight.is_contiguous(memory_format=torch.channels_last)
    size = 1 + cfg.base_class_count
    counts = torch.zeros(size, size, dtype=torch.int64)
    model.eval()
    for item in (dataset[number] for number in range(len(dataset))):
        with torch.no_grad():
            scores = resize(model(item["image"][None]), item["label"].shape)
        counts += train_base.count_pairs(scores.argmax(1)[0], item["label"], size)
    assert found == pytest.approx(train_base.metrics(counts), abs=2e-3)
    assert found["miou"] > 0 and {*types} == {torch.float32}
    train_base.measure(model, toy_config(data, batch_size_val=3, amp="bf16"), process_group, dataset)
    assert types[-1] == torch.bfloat16


def test_metrics_of_the_base_learner() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    prediction, label = torch.randint(0, 4, (2, 50, 60))
    label[torch.rand(50, 60) < 0.1] = 255
    found = train_base.metrics(train_base.count_pairs(prediction, label, 5))
    kept = label != 255
    iou = torchmetrics.functional.jaccard_index(
        prediction[kept], label[kept], "multiclass", num_classes=5, average=None
    )
    assert found["miou"] == pytest.approx(iou[1:4].mean().item())  # class 4 does not occur
    assert found["pixel_accuracy"] == pytest.approx((prediction == label)[kept].double().mean().item())


@pytest.mark.parametrize(
    ("epochs", "start", "often", "positions"),
    [
        (3, 26, True, [3]),
        (3, 2, True, [1.5, 2, 2.5, 3]),
        (3, 2, False, [2, 3]),
        (102, 100, True, [100, 101, 101.5, 102]),
        (102, 200, True, [102]),
    ],
)
def test_when_to_validate(make_config: Any, epochs: int, start: int, often: bool, positions: list[float]) -> None:
    cfg = make_config(epochs=epochs, val_start_epoch=start, SubEpoch_val=often)
    assert [half / 2 for half in range(1, 2 * epochs + 1) if train.validates(cfg, half / 2)] == positions
    silent = make_config(epochs=epochs, evaluate=False)
    assert not any(train.validates(silent, half / 2) for half in range(1, 2 * epochs + 1))


@pytest.mark.parametrize(("data_set", "first", "first_middle"), [("pascal", 27, 101.5), ("coco", 26.5, 26.5)])
def test_when_the_published_recipes_validate(
    make_config: Any, data_set: str, first: float, first_middle: float
) -> None:
    """After the 27th epoch; in the middle from the 102nd on in long trainings."""
    cfg = make_config(data_set=data_set)
    positions = [half / 2 for half in range(1, 2 * cfg.epochs + 1) if train.validates(cfg, half / 2)]
    assert positions[0] == first and next(place for place in positions if place % 1) == first_middle
    assert {*range(27, cfg.epochs + 1)} == {place for place in positions if place % 1 == 0}


def test_the_base_learner_is_validated_from_an_epoch_on(data: Path, tmp_path: Path) -> None:
    cfg = toy_config(data, base_epochs=3, base_val_start_epoch=2, base_batch_size=4, initmodel=tmp_path, exp=tmp_path)
    run(train_base.train, cfg)
    result = json.loads(train_base.run_paths(cfg).file("result.json").read_text())
    assert [each["epoch"] for each in result["validations"]] == [2, 3]


def test_a_base_batch_that_does_not_divide(data: Path) -> None:
    with pytest.raises(UserError, match=r"base_batch_size: 9 should be a multiple of .* \(1 \* 2\)"):
        run(train_base.train, toy_config(data, base_batch_size=9, accumulate=2))


def killed_at_random(size: int, cfg: Config, kills: int, longest: float) -> int:
    """Start the run, kill it at a random moment, resume it, and so on until it has ended; the number of kills."""
    done, cfg = 0, cfg.model_copy(update={"resume": "auto", "save_minutes": 1e-9})
    while done < kills:
        processes, _ = start_processes(size, run, train.train, cfg)
        deadline = time.monotonic() + random.uniform(0, longest)
        while time.monotonic() < deadline and all(process.is_alive() for process in processes):
            time.sleep(0.005)
        finished = not any(process.is_alive() for process in processes)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join()
        if finished:
            break
        done += 1
    run_processes(size, run, train.train, cfg)
    return done


def test_kills_lose_nothing(whole: Config, data: Path, tmp_path: Path) -> None:
    start, end = ((whole.experiment_dir / name).stat().st_mtime for name in ("config.yaml", "result.json"))
    longest, parts = end - start, config(data, tmp_path / "parts")
    while not killed_at_random(1, parts, kills=2, longest=longest):  # it was faster this time, and was done before that
        longest, parts = longest / 2, config(data, Path(f"{parts.exp}_again"))
    assert_same(last_weights(parts), last_weights(whole))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_many_kills_lose_nothing(data: Path, tmp_path: Path, size: int) -> None:
    keys = {"epochs": 6, "loader_workers": 1, "batch_size": 4 // size}
    whole, parts = config(data, tmp_path / "whole", **keys), config(data, tmp_path / "parts", **keys)
    start = time.monotonic()
    run_processes(size, run, train.train, whole)
    kills = killed_at_random(size, parts, kills=12, longest=(time.monotonic() - start) / 4)
    print(f"{kills} kills with {size} processes")
    assert kills > 0
    assert_same(last_weights(parts), last_weights(whole))


def start_launcher(cfg: Config, *options: str) -> subprocess.Popen[str]:
    """train.py under torchrun, as the scripts start it."""
    path = Path(cfg.exp).with_suffix(".yaml")
    path.write_text(cfg.to_yaml())
    command = [sys.executable, "-m", "tools.launch", *options, "train.py", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--opts", "resume", "auto"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_under_torchrun_a_run_goes_on_on_other_machines(data: Path, tmp_path: Path) -> None:
    keys = {"print_freq": 1, "batch_size": 2, "epochs": 4}
    whole, parts = config(data, tmp_path / "whole", **keys), config(data, tmp_path / "parts", **keys)
    run_processes(2, run, train.train, whole)

    launcher = start_launcher(parts, "--standalone", "--nproc_per_node", "2")
    log = parts.experiment_dir / "log.txt"
    while not (log.exists() and "step" in log.read_text()) and launcher.poll() is None:
        time.sleep(0.01)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.communicate(timeout=60)[1].endswith("stopped by SIGTERM\n") and launcher.returncode == 75

    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}", "--rdzv_id", "run"]
    machines = [start_launcher(parts, "--nnodes", "2", "--nproc_per_node", "1", *meeting) for _ in range(2)]
    for machine in machines:
        stderr = machine.communicate(timeout=120)[1]
        assert machine.returncode == 0, stderr
    assert "resumed from" in log.read_text()
    assert_same(last_weights(parts), last_weights(whole))


def kill_machine(agent: subprocess.Popen[str]) -> None:
    """End an agent and its process at once, as a machine that fails."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for process in (agent.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_two_machines_give_what_one_process_gives_and_one_may_fail(data: Path, tmp_path: Path) -> None:
    keys = {"print_freq": 1, "batch_size": 2, "epochs": 4, "save_minutes": 1e-9}
    whole, parts = config(data, tmp_path / "whole", **keys, accumulate=2), config(data, tmp_path / "parts", **keys)
    run(train.train, whole)
    meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", "3", "--rdzv_backend", "c10d"]
    meeting += ["--rdzv_endpoint", f"localhost:{free_port()}", "--rdzv_id", "run"]
    host, other = (start_launcher(parts, *meeting, "--rdzv_conf", f"is_host={number}") for number in (1, 0))
    log = parts.experiment_dir / "log.txt"
    while not (log.exists() and log.read_text().count("step") > 3):
        assert host.poll() is None and other.poll() is None
        time.sleep(0.01)
    kill_machine(other)
    again = start_launcher(parts, *meeting, "--rdzv_conf", "is_host=0")
    said = [agent.communicate(timeout=300)[1] for agent in (host, again)]
    assert (host.returncode, again.returncode) == (0, 0), said
    assert "resumed from" in log.read_text()
    assert_same(last_weights(parts), last_weights(whole))
    results = [json.loads((cfg.experiment_dir / "result.json").read_text())["validations"] for cfg in (parts, whole)]
    several, one = ([[entry[key] for key in ("epoch", "miou", "fb_iou")] for entry in each] for each in results)
    assert several == one

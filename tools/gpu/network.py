"""The whole network on the device: scores, training steps, resuming, memory, processes, evaluation."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler

from engine.optim import make_sgd, make_trunk_adamw
from model.build import build_model
from model.inference import prepare_inference
from model.loss import episode_loss
from model.methods.hmnet import HMNet
from tools.gpu.setting import CheckSetting, check
from tools.memory import step_memory
from util.config import Config, load_config

BASE = Path(__file__).resolve().parents[2] / "config" / "base" / "pascal.yaml"
SMALL = {"backbone": "tiny", "width": 32, "blocks": 2, "state_size": 4, "feature_size": 8, "val_size": 33}
SMALL |= {"train_h": 33, "train_w": 33, "base_train_h": 33}
MIDDLE = {"val_size": 129, "train_h": 129, "train_w": 129, "feature_size": 16}  # pixels, of ResNet-50
MODES = ("float32", "tf32", "fp16", "bf16", "compile")
TOLERANCE = {"float32": 1e-3, "tf32": 3e-2, "fp16": 3e-2, "bf16": 0.15, "compile": 1e-3}  # of the largest score
STEPS = 30
EPISODES = 200
GIGABYTE = 2**30


class Episodes(NamedTuple):
    """A batch of generated episodes."""

    query: Tensor  # (B, 3, H, H)
    support: Tensor  # (B, 1, 3, H, H)
    support_mask: Tensor  # (B, 1, H, H)
    query_mask: Tensor  # (B, H, H)
    left_out: Tensor  # (B,) which of four colours the object has

    def to(self, device: torch.device) -> "Episodes":
        """The same on a device."""
        return Episodes(*(x.to(device) for x in self))


def config(setting: CheckSetting, **changes: Any) -> Config:
    """PASCAL-5i's settings with ResNet-50, or those of a small network in a rehearsal, with `changes`."""
    values = {**(SMALL if setting.is_small else {}), **changes}
    return load_config(BASE, [word for key, value in values.items() for word in (key, str(value))])


def generate_episodes(count: int, size: int, seed: int) -> Episodes:
    """Ellipses of one colour, among others of another, in query and support: a task that some steps teach."""
    rng, colours = (
        np.random.default_rng(seed),
        np.array([[2, -1, -1], [-1, 2, -1], [-1, -1, 2], [2, 2, -1]], np.float32),
    )

    def picture(wanted: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = rng.normal(0, 0.3, (size, size, 3)).astype(np.float32), np.zeros((size, size), np.uint8)
        for colour, value in ((other, 0), (wanted, 1)):
            centre, axes = rng.integers(size // 4, 3 * size // 4, 2), rng.integers(size // 8, size // 4, 2)
            region = cv2.ellipse(np.zeros_like(mask), centre.tolist(), axes.tolist(), 0, 0, 360, [1], -1) > 0
            image[region] += colours[colour]
            mask[region] = value
        return image.transpose(2, 0, 1), mask

    wanted = rng.integers(0, 4, count)
    pairs = [[picture(w, (w + 1 + rng.integers(0, 3)) % 4) for _ in range(2)] for w in wanted]
    images = torch.from_numpy(np.stack([[image for image, _ in pair] for pair in pairs]))
    masks = torch.from_numpy(np.stack([[mask for _, mask in pair] for pair in pairs])).long()
    return Episodes(images[:, 0], images[:, 1:], masks[:, 1:], masks[:, 0], torch.from_numpy(wanted).long())


@contextmanager
def precision(mode: str, device: torch.device) -> Iterator[None]:
    """Within the block products are computed as `mode` says; the former setting comes back after it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if mode == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = mode == "tf32"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mode)
    try:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def modes(setting: CheckSetting) -> Sequence[str]:
    """The modes that mean something on the device: a CPU has neither TF32 nor an fp16 worth training in."""
    return [mode for mode in MODES if not (setting.is_small and mode in ("tf32", "fp16"))]


def compiler(device: torch.device) -> str:
    """torch.compile's backend; on a CPU, where C++ would be compiled for minutes, the graphs run as they are."""
    return "aot_eager" if device.type == "cpu" else "inductor"


def check_scores(setting: CheckSetting) -> dict[str, Any]:
    """Scores of one random network in every mode against the CPU's in float32."""
    cfg = config(setting)
    torch.manual_seed(0)
    model, episodes = build_model(cfg, pretrained=False).eval(), generate_episodes(1, cfg.val_size, seed=0)
    with torch.inference_mode():
        expected = model(*episodes[:3])
        rows: list[dict[str, Any]] = []
        for mode in modes(setting):
            network = prepare_inference(copy.deepcopy(model).to(setting.device))
            if mode == "compile":
                network.compile(backend=compiler(setting.device))
            with precision(mode, setting.device):
                found = network(*episodes.to(setting.device)[:3])
            errors = {name: _error(getattr(found, name), getattr(expected, name)) for name in found._fields}
            rows.append({"mode": mode, **errors, "limit": TOLERANCE[mode]})
    for row in rows:
        check(max(row["meta"], row["final"]) < row["limit"], f"scores of {row['mode']} are too far off: {row}")
    return {"errors": rows}


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found.float().cpu() - expected).abs().max() / expected.abs().max()).item()


class Trainer:
    """Steps of both optimisers as meta-training takes them, on generated episodes of which none comes twice."""

    def __init__(self, cfg: Config, device: torch.device, mode: str, batch: int, size: int) -> None:
        torch.manual_seed(0)
        self.model = build_model(cfg, pretrained=False).to(device).train()
        self.sgd = make_sgd(self.model.learnable_groups(), cfg.momentum, cfg.weight_decay)
        for group in self.sgd.param_groups:
            group["lr"] = 10 * cfg.base_lr
        self.adamw = make_trunk_adamw(self.model.trunk, cfg.trunk_lr, batch, cfg.trunk_weight_decay)
        self.scaler = GradScaler(device.type, enabled=mode == "fp16")
        self.device, self.mode, self.batch, self.size = device, mode, batch, size
        if mode == "compile":
            self.model.compile(backend=compiler(device))

    def step(self, number: int) -> float:
        """Train on the episodes of this number; the loss before the step."""
        episodes = generate_episodes(self.batch, self.size, seed=number).to(self.device)
        with precision(self.mode, self.device):
            loss = sum(episode_loss(self.model(*episodes[:3], episodes.left_out), episodes.query_mask).values())
        assert isinstance(loss, Tensor)
        self.scaler.scale(loss).backward()
        for optimizer in (self.sgd, self.adamw):
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Everything that decides the next step."""
        parts: dict[str, Any] = {"model": self.model, "sgd": self.sgd, "adamw": self.adamw, "scaler": self.scaler}
        return {name: part.state_dict() for name, part in parts.items()} | {"rng": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        for name in ("model", "sgd", "adamw", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])


def check_training(setting: CheckSetting) -> dict[str, Any]:
    """Steps in every mode: a falling loss, a scaler that found its scale, and the same course after resuming."""
    cfg = config(setting, **({} if setting.is_small else MIDDLE))
    rows: list[dict[str, Any]] = []
    for mode in modes(setting):
        trainer = Trainer(cfg, setting.device, mode, 4, cfg.train_h)
        losses = [trainer.step(number) for number in range(STEPS // 2)]
        with tempfile.TemporaryDirectory() as folder:
            torch.save(trainer.state(), Path(folder, "state.pth"))
            losses += [trainer.step(number) for number in range(STEPS // 2, STEPS)]
            trainer.restore(torch.load(Path(folder, "state.pth"), weights_only=True))
        again = [trainer.step(number) for number in range(STEPS // 2, STEPS // 2 + 3)]
        first, last = fmean(losses[:5]), fmean(losses[-5:])
        difference = max(abs(a - b) for a, b in zip(again, losses[STEPS // 2 :], strict=False))
        rows.append({"mode": mode, "first loss": first, "last loss": last, "after resuming": difference})
        check(bool(np.isfinite(losses).all()) and last < first, f"{mode}: the loss did not fall: {losses}")
        check(difference < 0.02 * first, f"{mode}: losses after resuming differ by {difference:.4f}")
        if mode == "fp16":
            rows[-1]["scale"] = trainer.scaler.get_scale()
            check(rows[-1]["scale"] >= 1, f"fp16: the gradients' scale fell to {rows[-1]['scale']}")
    return {"steps": rows if setting.is_small else [{"scale": "", **row} for row in rows]}


def check_peak_memory(setting: CheckSetting) -> dict[str, Any]:
    """Memory of a training step with the paper's sizes and two episodes; it must fit the paper's 32 GB cards.

    Without a GPU it is counted only, for 16 bit with bf16 in the place of fp16.
    """
    rows: list[dict[str, Any]] = []
    for size, feature_size, mode in ((473, 64, "float32"), (633, 80, "float32"), (633, 80, "fp16")):
        sizes = {"val_size": size, "train_h": size, "train_w": size, "feature_size": feature_size, "batch_size": 2}
        cfg = config(CheckSetting(torch.device("cuda")), num_classes=20, **sizes)
        memory = step_memory(cfg.model_copy(update={"amp": "bf16" if mode == "fp16" else "off"}))
        counted = {f"{name} GB": count / GIGABYTE for name, count in memory._asdict().items()}
        rows.append({"size": size, "mode": mode, **counted})
        if not setting.is_small:
            torch.cuda.reset_peak_memory_stats()
            trainer = Trainer(cfg, setting.device, mode, 2, size)
            trainer.step(0), trainer.step(1)
            rows[-1]["measured peak GB"] = torch.cuda.max_memory_allocated() / GIGABYTE
            del trainer
        needed = max(figure for key, figure in rows[-1].items() if key.endswith("peak GB"))
        check(needed < 32, f"a step needs {needed:.1f} GB, more than 32: {rows[-1]}")
    return {"training step of two episodes": rows}


def check_processes(setting: CheckSetting) -> dict[str, Any]:
    """Gradients averaged over 1 ... n processes (NCCL, one GPU each; gloo in a rehearsal) against one process's."""
    most = 2 if setting.is_small else torch.cuda.device_count()
    rows: list[dict[str, Any]] = []
    for count in range(1, most + 1):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_averaged_gradients, (count, setting.device.type, folder), nprocs=count)
            found = [torch.load(Path(folder, f"{rank}.pth"), weights_only=True) for rank in range(count)]
        expected = _gradients(
            config(setting), setting.device, generate_episodes(2 * count, _small_size(setting), seed=1)
        )
        for rank, gradient in enumerate(found):
            rows.append({"processes": count, "rank": rank, "error": _error(gradient, expected.cpu())})
            check(rows[-1]["error"] < 1e-3, f"gradients of {count} processes differ from one process's: {rows[-1]}")
    return {"gradients": rows}


def _small_size(setting: CheckSetting) -> int:
    return 33 if setting.is_small else 129


def _gradients(cfg: Config, device: torch.device, episodes: Episodes) -> Tensor:
    """The learnable gradients of the dice loss, a mean over episodes, as one vector; without dropout."""
    torch.manual_seed(0)
    model = build_model(cfg, pretrained=False).to(device).eval()
    episodes = episodes.to(device)
    episode_loss(model(*episodes[:3]), episodes.query_mask)["dice"].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).detach()


def _averaged_gradients(rank: int, count: int, kind: str, folder: str) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    store = dist.FileStore(str(Path(folder, "store")), count)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    setting = CheckSetting(torch.device(kind))
    episodes = generate_episodes(2 * count, _small_size(setting), seed=1)
    share = Episodes(*(x[2 * rank : 2 * rank + 2] for x in episodes))
    gradient = _gradients(config(setting), device, share)
    dist.all_reduce(gradient)
    torch.save((gradient / count).cpu(), Path(folder, f"{rank}.pth"))
    dist.destroy_process_group()


def check_evaluation(setting: CheckSetting) -> dict[str, Any]:
    """A network trained for some steps on the device gives the same mIoU over 200 episodes there and on the CPU.

    So few steps leave the foreground's scores below the background's, so an object is where the margin between them is
    above its median on the CPU.
    """
    cfg = config(setting, **({} if setting.is_small else {**SMALL, "val_size": 65, "train_h": 65, "train_w": 65}))
    trainer = Trainer(cfg, setting.device, "float32", 8, cfg.val_size)
    for number in range(STEPS):
        trainer.step(1000 + number)
    episodes = generate_episodes(EPISODES, cfg.val_size, seed=7)
    here, there = (_margins(trainer.model, episodes, device) for device in (setting.device, torch.device("cpu")))
    found, expected = (_miou(margins > there.median(), episodes) for margins in (here, there))
    check(abs(found - expected) < 1e-3, f"mIoU {found:.5f} on the device, {expected:.5f} on the CPU")
    return {"episodes": EPISODES, "mIoU on the device": found, "mIoU on the CPU": expected}


@torch.inference_mode()
def _margins(model: HMNet, episodes: Episodes, device: torch.device) -> Tensor:
    """Foreground minus background scores of all episodes, (B, H, W), on the CPU."""
    network: nn.Module = prepare_inference(copy.deepcopy(model).to(device))
    parts = [Episodes(*(x[start : start + 8] for x in episodes)) for start in range(0, len(episodes.query), 8)]
    scores = [network(*part.to(device)[:3]).final.cpu() for part in parts]
    return torch.cat([score[:, 1] - score[:, 0] for score in scores])


def _miou(prediction: Tensor, episodes: Episodes) -> float:
    """Mean over the four colours of the IoU of masks (B, H, W), intersections and unions summed over episodes."""
    truth = episodes.query_mask.bool()
    counts = torch.stack([(prediction & truth).sum((1, 2)), (prediction | truth).sum((1, 2))], dim=1)
    sums = torch.zeros(4, 2, dtype=torch.int64).index_add_(0, episodes.left_out, counts)
    return (sums[:, 0] / sums[:, 1]).mean().item()

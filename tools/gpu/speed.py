"""How fast the device is and how much of it the network uses: peaks, stages, episodes, training steps, sizes, scans."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from model.build import build_model
from model.hmnet import HMNet
from model.inference import prepare_inference
from model.scan.mamba_ssm import is_available
from tools.gpu.kernels import Shape
from tools.gpu.network import Trainer, config, precision
from tools.gpu.scans import random_scan, run_scan
from tools.gpu.setting import Setting
from tools.measure import count_flops, timed

REPEATS = 5
GIGA = 1e9
MEGABYTE = 2**20
SIZES = {473: 64, 633: 80, 793: 100, 953: 120, 1113: 140}  # pixels of the paper's Table 9, and the trunk's grid
MODES = {"float32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """The fastest of some calls, each waited for."""

    def waited() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timed(waited, REPEATS, warm_ups=2).minimum


def measure_peaks(setting: Setting) -> dict[str, float]:
    """TFLOP/s of square products in every mode, and GB/s of copying."""
    size, device = 256 if setting.is_small else 8192, setting.device
    peaks = {}
    for mode, dtype in MODES.items():
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        with precision(mode if mode == "tf32" else "float32", device):
            peaks[f"{mode} TFLOP/s"] = 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device) / 1e12  # type: ignore[misc]
    x = torch.empty((1 if setting.is_small else 512) * MEGABYTE, dtype=torch.uint8, device=device)
    peaks["copy GB/s"] = 2 * x.numel() / seconds(x.clone, device) / GIGA
    return peaks


def random_images(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Query, support and mask of one episode of noise."""
    mask = torch.zeros(1, 1, size, size, device=device)
    mask[..., size // 4 : 3 * size // 4] = 1
    return torch.randn(1, 3, size, size, device=device), torch.randn(1, 1, 3, size, size, device=device), mask


def stages(model: HMNet, size: int, device: torch.device) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """The stages of a one-shot episode: name, times per episode, what to call."""
    query, support, mask = random_images(size, device)
    frozen = model.features(query)
    q, s = model.embed(frozen, "query"), model.embed(model.features(support[0]), "support")
    state = model.support_state(s, mask)
    f, width = model.feature_size, q.reduced.shape[1]
    trunk_input, meta = torch.randn(1, f, f, width, device=device), torch.randn(1, 2, f, f, device=device)
    yield "features of one image", 2, lambda: model.features(query)
    yield "embedding of one image", 2, lambda: model.embed(frozen, "query")
    yield "prior", 1, lambda: model.prior(q.levels, state.levels)
    yield "support's memories", 1, lambda: model.support_state(s, mask)
    yield "trunk, query", 1, lambda: model.trunk(trunk_input, state.memories)
    yield "decoder", 1, lambda: model.decode(trunk_input)
    yield "ensemble", 1, lambda: model.ensemble(meta, q, state)


@torch.inference_mode()
def measure_inference(setting: Setting, peak: float) -> dict[str, Any]:
    """Stages, whole episodes (cold, cached features, known support) and sizes beside attention's, in float32."""
    device, cfg = setting.device, config(setting)
    model = prepare_inference(build_model(cfg, pretrained=False).to(device))
    rows = []
    for name, times, function in stages(model, cfg.val_size, device):
        gflop, taken = count_flops(function) / GIGA, seconds(function, device)
        share = gflop / 1000 / taken / peak
        rows.append({"stage": name, "times": times, "ms": 1e3 * taken, "GFLOP": gflop, "share of peak": f"{share:.0%}"})
    query, support, mask = random_images(cfg.val_size, device)
    frozen = [model.features(x) for x in (query, support[0])]

    def cached() -> Any:
        state = model.support_state(model.embed(frozen[1], "support"), mask)
        return model.score(model.embed(frozen[0], "query"), state)

    state = model.encode_support(support, mask)
    functions: dict[str, Callable[[], Any]] = {
        "cold": lambda: model(query, support, mask),
        "cached features": cached,
        "known support": lambda: model.score(model.embed(frozen[0], "query"), state),
    }
    episodes = [{"episode": name, "ms": 1e3 * seconds(function, device)} for name, function in functions.items()]
    return {"stages": rows, "episodes": episodes, "sizes": measure_sizes(setting)}


def measure_sizes(setting: Setting) -> list[dict[str, Any]]:
    """A cold episode at the sizes of the paper's Table 9, HMNet beside cross attention (None: out of memory)."""
    rows: list[dict[str, Any]] = []
    for size, grid in ({33: 8, 65: 16} if setting.is_small else SIZES).items():
        rows.append({"size": size, "grid": grid})
        for fusion in ("hmnet", "cross_attention"):
            cfg = config(setting, val_size=size, feature_size=grid, fusion=fusion)
            model = prepare_inference(build_model(cfg, pretrained=False).to(setting.device))
            try:
                images = random_images(size, setting.device)
                rows[-1][f"{fusion} ms"] = 1e3 * seconds(lambda m=model, i=images: m(*i), setting.device)  # type: ignore[misc]
            except torch.OutOfMemoryError:
                rows[-1][f"{fusion} ms"] = None
    return rows


def measure_training(setting: Setting) -> list[dict[str, Any]]:
    """A training step of two episodes at the paper's size in every mode that the device trains in."""
    rows = []
    for mode in ("float32",) if setting.is_small else ("float32", "tf32", "fp16", "bf16"):
        cfg = config(setting)
        trainer = Trainer(cfg, setting.device, mode, 2, cfg.train_h)
        taken = seconds(lambda t=trainer: t.step(0), setting.device)  # type: ignore[misc]
        rows.append({"mode": mode, "s": taken, "episodes/s": 2 / taken})
    return rows


def measure_scans(setting: Setting, bandwidth: float) -> list[dict[str, Any]]:
    """A scan forward and backward by every backend that is here, beside what the copy bandwidth allows."""
    side, channels, states = (4, 4, 4) if setting.is_small else (64, 512, 16)
    shape = Shape(4 * side**2, channels, states, 16)
    inputs = random_scan(1, side, channels, states, recap=True, initial=False)
    inputs = {k: v.float().to(setting.device) if k not in ("order", "period") else v for k, v in inputs.items()}
    limit = sum(part()[0] for part in (shape.forward, shape.backward)) / bandwidth
    rows = []
    for backend in ("triton", *(["mamba_ssm"] if is_available() else []), "reference"):
        taken = seconds(lambda b=backend: run_scan(inputs, b, setting.device, torch.float32), setting.device)  # type: ignore[misc]
        rows.append({"backend": backend, "ms": 1e3 * taken, "share of the roofline": f"{limit / taken:.0%}"})
    return rows


def measure_speed(setting: Setting) -> dict[str, Any]:
    """Everything; figures depend on the machine and none is asserted. The faster backend of the scan is named."""
    peaks = measure_peaks(setting)
    scans = measure_scans(setting, peaks["copy GB/s"] * GIGA)
    fastest = min(scans, key=lambda row: row["ms"])["backend"]
    return {
        **peaks,
        "fastest scan": fastest,
        **measure_inference(setting, peaks["float32 TFLOP/s"]),
        "training steps": measure_training(setting),
        "scans, forward and backward": scans,
    }

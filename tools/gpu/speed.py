"""How fast the device is and how much of it the network uses: peaks, stages, episodes, training steps, sizes, scans."""

from collections.abc import Callable
from typing import Any

import torch

from model.scan.mamba_ssm import is_available
from tools.gpu.kernels import Shape
from tools.gpu.network import Trainer, config, precision
from tools.gpu.scans import random_scan, run_scan
from tools.gpu.setting import CheckSetting
from tools.measure import count_flops, timed
from tools.stages import GIGA, MEGABYTE, SIZES, MeasuredEpisode, inference_model, random_images, stages

REPEATS = 5
MODES = {"float32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """The fastest of some calls, each waited for."""

    def waited() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timed(waited, REPEATS, warm_ups=2).minimum


def measure_peaks(setting: CheckSetting) -> dict[str, float]:
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


@torch.inference_mode()
def measure_inference(setting: CheckSetting, peak: float) -> dict[str, Any]:
    """Stages, whole episodes (cold, cached features, known support) and sizes beside attention's, in float32."""
    device, cfg = setting.device, config(setting)
    model, images = inference_model(cfg).to(device), random_images(cfg.val_size, 1, device)
    rows = []
    for stage in stages(model, images):
        gflop, taken = count_flops(stage.function) / GIGA, seconds(stage.function, device)
        share = f"{gflop / 1000 / taken / peak:.0%}"
        row = {"stage": stage.name, "times": stage.times, "ms": 1e3 * taken, "GFLOP": gflop, "share of peak": share}
        rows.append(row)
    episode = MeasuredEpisode(model, images)
    functions = {"cold": episode.cold, "cached features": episode.cached}
    episodes = [{"episode": name, "ms": 1e3 * seconds(function, device)} for name, function in functions.items()]
    episodes.append({"episode": "known support", "ms": 1e3 * seconds(episode.known_support(), device)})
    return {"stages": rows, "episodes": episodes, "sizes": measure_sizes(setting)}


def measure_sizes(setting: CheckSetting) -> list[dict[str, Any]]:
    """A cold episode at the sizes of the paper's Table 9, HMNet beside cross attention (None: out of memory)."""
    rows: list[dict[str, Any]] = []
    for size, grid in ({33: 8, 65: 16} if setting.is_small else SIZES).items():
        rows.append({"size": size, "grid": grid})
        for fusion in ("hmnet", "cross_attention"):
            cfg = config(setting, val_size=size, feature_size=grid, fusion=fusion)
            model = inference_model(cfg).to(setting.device)
            try:
                images = random_images(size, 1, setting.device)
                rows[-1][f"{fusion} ms"] = 1e3 * seconds(lambda m=model, i=images: m(*i), setting.device)  # type: ignore[misc]
            except torch.OutOfMemoryError:
                rows[-1][f"{fusion} ms"] = None
    return rows


def measure_training(setting: CheckSetting) -> list[dict[str, Any]]:
    """A training step of two episodes at the paper's size in every mode that the device trains in."""
    rows = []
    for mode in ("float32",) if setting.is_small else ("float32", "tf32", "fp16", "bf16"):
        cfg = config(setting)
        trainer = Trainer(cfg, setting.device, mode, 2, cfg.train_h)
        taken = seconds(lambda t=trainer: t.step(0), setting.device)  # type: ignore[misc]
        rows.append({"mode": mode, "s": taken, "episodes/s": 2 / taken})
    return rows


def measure_scans(setting: CheckSetting, bandwidth: float) -> list[dict[str, Any]]:
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


def measure_speed(setting: CheckSetting) -> dict[str, Any]:
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

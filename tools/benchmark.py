"""How fast the network is and why: `python -m tools.benchmark [--quick] [--config FILE] [--opts key value ...]`.

One run measures the machine's peak in matrix products, every stage of an episode, whole episodes, the image sizes of
the paper's Table 9, and the scan in plain PyTorch. It writes benchmark.json and benchmark.md. Weights are random: speed
does not depend on them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.build import encoder
from tools.loading import measure_loading
from tools.measure import Peak, in_fresh_process, machine, product_peak
from tools.paper.table import Table
from tools.stages import (
    GIGA,
    SIZES,
    episode_gflops,
    measure_episodes,
    measure_scan,
    measure_stages,
    stage_gflops,
)
from tools.training import measure_training, training_gflops
from util.config import Config, load_config
from util.errors import UserError, run_main
from util.files import atomic_write

CONFIG = "config/pascal/pascal_split0_resnet50_manet.yaml"
QUICK_SIZES = {105: 16, 169: 24, 233: 32}
FUSIONS = ("hmnet", "cross_attention")
STEADY = 1.1  # the largest ratio of two measured peaks of a quiet machine


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the network's speed and memory.")
    parser.add_argument("--quick", action="store_true", help="small images, under a minute")
    parser.add_argument("--config", default=CONFIG, help=f"YAML file of the experiment; default: {CONFIG}")
    parser.add_argument("--out", type=Path, default=Path("exp/benchmark"), help="folder for the results")
    parser.add_argument("--repeats", type=int, default=3, help="calls of which the fastest counts")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="key value ..., instead of the config's")
    return parser.parse_args()


def run(cfg: Config, quick: bool, repeats: int) -> dict[str, Any]:
    """Measure everything, in processes of their own."""
    nearest = encoder(cfg).nearest
    sizes = {nearest(size): grid for size, grid in (QUICK_SIZES if quick else SIZES).items()}
    if quick:
        size = dict.fromkeys(("val_size", "train_h", "train_w"), max(sizes))
        cfg = cfg.model_copy(update={**size, "feature_size": max(sizes.values())})
    result: dict[str, Any] = {"kind": "benchmark", "quick": quick, "machine": machine(), "config": cfg.model_dump()}
    before = in_fresh_process(measure_peaks, repeats)
    result["stages"] = in_fresh_process(measure_stages, cfg, repeats)
    for stage, gflop in zip(result["stages"], stage_gflops(cfg).values(), strict=True):
        stage["gflop"] = gflop
    result["gflops"] = episode_gflops(cfg)
    result["episodes"], result["scan"] = {}, {}
    for backend in [cfg.scan] if quick else [cfg.scan, "reference"]:
        changed, often = cfg.model_copy(update={"scan": backend}), repeats if backend == cfg.scan else 1
        episode = {cfg.val_size: cfg.feature_size}
        result["episodes"][backend] = in_fresh_process(measure_episodes, changed, episode, often)[0]
        result["scan"][backend] = in_fresh_process(measure_scan, changed, backend, often)
    half = cfg.model_copy(update={"amp": "bf16"})
    result["episodes"]["bf16"] = in_fresh_process(measure_episodes, half, {cfg.val_size: cfg.feature_size}, repeats)[0]
    result["scan"]["bf16"] = result["scan"][cfg.scan]  # which is in float32 all the same
    result["training_gflop"] = training_gflops(cfg)
    steps = {"float32": cfg.model_copy(update={"amp": "off"}), "bf16": half}
    result["training"] = {name: in_fresh_process(measure_training, each, repeats) for name, each in steps.items()}
    result["loading"] = in_fresh_process(measure_loading, cfg)
    result["sweep"] = {f: sweep(cfg.model_copy(update={"fusion": f}), sizes, not quick) for f in FUSIONS}
    return result | best_peaks([before, in_fresh_process(measure_peaks, repeats)])


def measure_peaks(repeats: int) -> tuple[Peak, Peak]:
    """The peaks of matrix products in float32 and bf16."""
    return product_peak(repeats=repeats + 2), product_peak(repeats=repeats + 2, dtype=torch.bfloat16)


def best_peaks(measured: Sequence[tuple[Peak, Peak]]) -> dict[str, Any]:
    """The best of several measurements in GFLOP/s, and how far apart they are: a busy machine reaches less."""
    singles, halves = zip(*measured, strict=True)
    peak, half = max(singles), max(halves)
    spread = max(max(peaks).flops / min(peaks).flops for peaks in (singles, halves))
    return {"gemm_gflops": peak.flops / GIGA, "gemm_way": peak.way, "bf16_gflops": half.flops / GIGA, "spread": spread}


def sweep(cfg: Config, sizes: Mapping[int, int], apart: bool) -> dict[str, Any]:
    """One episode per size, each `apart` in its own process, and the straight line through seconds over pixels."""
    points: list[dict[str, Any]] = []
    for part in [{size: grid} for size, grid in sizes.items()] if apart else [sizes]:
        try:
            points += in_fresh_process(measure_episodes, cfg, part, 1)
        except UserError as error:
            points += [{"size": size, "feature_size": grid, "error": str(error)} for size, grid in part.items()]
    return {"points": points, "line": straight_line([point for point in points if "cold" in point])}


def straight_line(points: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Least squares of cold seconds over megapixels, with R^2; None for fewer than three points."""
    if len(points) < 3:
        return None
    x = np.array([point["size"] ** 2 / 1e6 for point in points])
    y = np.array([point["cold"] for point in points])
    slope, intercept = np.polyfit(x, y, 1)
    residual = ((y - slope * x - intercept) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return {"seconds_per_megapixel": float(slope), "intercept": float(intercept), "r2": float(1 - residual)}


def share(gflop: float, seconds: float, peak: float) -> str:
    """How much of the peak in GFLOP/s was reached; more than all of it shows that the machine was busy meanwhile."""
    reached = gflop / seconds / peak
    return f"{reached:.0%}" if reached <= 1 else "busy"


def stage_table(result: dict[str, Any]) -> Table:
    """Every stage and their sum."""
    cfg, peak = result["config"], result["gemm_gflops"]
    where = f"{cfg['val_size']} px, {cfg['shot']} shot, grid {cfg['feature_size']}"
    table = Table(f"Stages of an episode ({where})", ("stage", "times", "s", "median s", "GFLOP", "of peak"))
    for row in result["stages"]:
        name = f"within: {row['name']}" if row["inside"] else row["name"]
        seconds, gflop = row["seconds"], row["gflop"]
        figures = (f"{seconds:.4f}", f"{row['median']:.4f}", f"{gflop:.2f}", share(gflop, seconds, peak))
        table.rows.append((name, str(row["times"]), *figures))
    counted = [row for row in result["stages"] if not row["inside"]]
    seconds, gflop = (sum(row["times"] * row[key] for row in counted) for key in ("seconds", "gflop"))
    table.rows.append(("sum of times x s", "", f"{seconds:.4f}", "", f"{gflop:.2f}", share(gflop, seconds, peak)))
    table.notes.append(f"Peak of float32 on this machine: {peak:.1f} GFLOP/s, by {result['gemm_way']}.")
    if result["spread"] > STEADY:
        table.notes.append(
            "The machine was busy with something else: its peak before all measurements and that after them differ by "
            f"a factor of {result['spread']:.2f}; `busy` is where the network did better than that peak."
        )
    table.notes.append("FLOPs are those of products, convolutions, attention and scans; a multiply-add is two.")
    return table


def episode_table(result: dict[str, Any]) -> Table:
    """Whole episodes and one block's scan, by scan backend."""
    needed = result["gflops"]
    columns = ("scan", "cold s", "of peak", "cached s", "of peak", "known support s", "peak MB", "one scan s")
    table = Table("Whole episodes", columns)
    for backend, row in result["episodes"].items():
        cells, peak = [backend], result["bf16_gflops" if backend == "bf16" else "gemm_gflops"]
        for seconds, gflop in ((row["cold"], needed["gflop"]), (row["cached"], needed["cached_gflop"])):
            cells += [f"{seconds:.3f}", share(gflop, seconds, peak)]
        scan = result["scan"][backend]["seconds"]
        table.rows.append((*cells, f"{row['known_support']:.3f}", f"{row['peak_memory_mb']:.0f}", f"{scan:.4f}"))
    table.notes.append(f"bf16: the network under autocast; its peak is {result['bf16_gflops']:.1f} GFLOP/s.")
    table.notes.append(f"Cold: {needed['gflop']:.1f} GFLOP; nothing of the images is known.")
    table.notes.append(f"Cached: {needed['cached_gflop']:.1f} GFLOP; the features of all images are at hand.")
    table.notes.append("Known support: also everything that depends on the support alone.")
    table.notes.append(f"One scan: four directions over {result['config']['feature_size'] ** 2} tokens of the query.")
    return table


def training_table(result: dict[str, Any]) -> Table:
    """A training step, in both types of numbers."""
    cfg, gflop = result["config"], result["training_gflop"]
    title = f"A training step ({cfg['train_h']} px, {cfg['shot']} shot, batch {cfg['batch_size']}, {gflop:.1f} GFLOP)"
    parts = ("forward", "backward", "optimiser")
    table = Table(title, ("numbers", "s", "items/s", "of peak", *(f"{part} s" for part in parts), "peak MB"))
    for name, row in result["training"].items():
        seconds, peak = sum(row[part] for part in parts), result["bf16_gflops" if name == "bf16" else "gemm_gflops"]
        cells = (name, f"{seconds:.3f}", f"{cfg['batch_size'] / seconds:.2f}", share(gflop, seconds, peak))
        table.rows.append((*cells, *(f"{row[part]:.3f}" for part in parts), f"{row['peak_memory_mb']:.0f}"))
        images = cfg["batch_size"] * (1 + cfg["shot"]) / seconds
        workers = ceil(images / result["loading"]["pictures_per_second"])
        table.notes.append(f"{name}: takes {images:.1f} images/s; {workers} loader worker(s) keep up with it.")
    loading = "A loader worker: {pictures_per_second:.1f} images/s, of generated JPEG files of {size} x {size} pixels."
    table.notes.append(loading.format(**result["loading"]))
    return table


def size_table(result: dict[str, Any]) -> Table:
    """Cold seconds and peak memory over image sizes."""
    table = Table("Image sizes (the paper's Table 9)", ("size", "grid", *(f"{f} s (MB)" for f in result["sweep"])))
    for row in zip(*(swept["points"] for swept in result["sweep"].values()), strict=True):
        cells = (f"{p['cold']:.2f} ({p['peak_memory_mb']:.0f})" if "cold" in p else "failed" for p in row)
        table.rows.append((str(row[0]["size"]), str(row[0]["feature_size"]), *cells))
    for fusion, swept in result["sweep"].items():
        if line := swept["line"]:
            formula = f"{line['seconds_per_megapixel']:.2f} s per megapixel {line['intercept']:+.2f} s"
            table.notes.append(f"{fusion}: the straight line is {formula}, R^2 {line['r2']:.4f}")
        table.notes += [f"{fusion}, {p['size']}: {p['error']}" for p in swept["points"] if "error" in p]
    return table


def report(result: dict[str, Any]) -> str:
    """The whole Markdown file."""
    about = [f"- {key}: {value}" for key, value in result["machine"].items()]
    tables = (stage_table(result), episode_table(result), training_table(result), size_table(result))
    return "\n".join(["# Benchmark", "", *about, "", *(table.markdown() for table in tables)])


def main() -> None:
    """Measure, write, print."""
    arguments = parse_arguments()
    result = run(load_config(arguments.config, arguments.opts), arguments.quick, arguments.repeats)
    text = report(result)
    atomic_write(arguments.out / "benchmark.json", json.dumps(result, indent=1) + "\n")
    atomic_write(arguments.out / "benchmark.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)

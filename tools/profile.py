"""Size and cost of the network: `python -m tools.profile --config FILE [--opts key value ...]`.

Parameters, learnable parameters, operations per part and episodes per second; and the same for 4, 6, 8 and 10 blocks
without the ensemble at 473 pixels beside the paper's Table 4. Writes profile.json and profile.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.build import build_model, encoder
from model.methods.hmnet import HMNet
from model.parts.mamba import SelectiveScan
from model.parts.trunk import Trunk
from tools.measure import count_flops, in_fresh_process, machine, parameter_count
from tools.paper.published import published
from tools.paper.table import Table
from tools.stages import GIGA, as_operator, measure_episodes, random_images, stage_gflops
from util.config import Config, load_config
from util.errors import run_main
from util.files import atomic_write

MILLION = 1e6
TABLE_4 = {"ensemble": False, "shot": 1, "feature_size": 64, "fusion": "hmnet"}
EXPLANATION = (
    "The paper does not say how it counts. Its numbers are met to 0.3 % in parameters and 0.2 % in FLOPs by counting "
    "layers only (columns `of layers`), as counters do that go by module: they see neither the scan's own parameters "
    "(x_proj, dt_proj, its bias, A, skip: 0.168 M a block) nor what is computed with them, and take both branches of "
    "every block as computed in full.",
    "FLOPs here: a multiply-add is two; norms, activations and resizes are left out; one backbone pass for each of the "
    "two images; the support scanned once, not in front of each of the 16 patches; nothing of what only feeds the "
    "last block's support output.",
    "Frames per second are cold episodes (query and support new) on this machine's processor, the paper's on one V100.",
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Count the network's parameters and operations.")
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--out", type=Path, default=Path("exp/profile"), help="folder for the results")
    parser.add_argument("--repeats", type=int, default=2, help="episodes of which the fastest counts; 0: no timing")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="key value ..., instead of the config's")
    return parser.parse_args()


def parts(model: HMNet) -> dict[str, tuple[int, int]]:
    """Parameters and learnable parameters of every part that the network has, in the order of computation."""
    modules: dict[str, nn.Module | None]
    modules = {"backbone": model.backbone, "base_learner": model.base_learner, "embed": model.embedding}
    modules |= {"trunk": model.trunk, "decoder": model.decoder, "ensemble": model.merging}
    return {k: (parameter_count(m), parameter_count(m, learnable=True)) for k, m in modules.items() if m is not None}


def scan_parameters(trunk: Trunk) -> int:
    """Parameters that are in no layer: those of the selective scans."""
    return sum(parameter_count(scan) for scan in trunk.modules() if isinstance(scan, SelectiveScan))


def layer_flops(trunk: Trunk, size: int) -> int:
    """Operations of the trunk's layers if each were applied to the whole grid of `size` x `size`, scans left out."""
    weights = [p for branch in ("query", "support") for p in _matrices(trunk, branch)]
    return 2 * size**2 * sum(p.numel() for p in weights)


def _matrices(trunk: Trunk, branch: str) -> list[torch.Tensor]:
    named = [item for block in trunk.blocks for item in block.named_parameters()]
    return [p for name, p in named if name.startswith(f"{branch}.") and name.endswith("weight")]


@torch.inference_mode()
def operations(model: HMNet, cfg: Config) -> dict[str, float]:
    """GFLOP of an episode, and of the same if only layers counted; the model's scan must be an operator."""
    trunk = model.trunk
    with FakeTensorMode(allow_non_fake_inputs=True):
        images, grid = (
            random_images(cfg.val_size, cfg.shot),
            torch.empty(1, cfg.feature_size, cfg.feature_size, cfg.width),
        )
        total = count_flops(lambda: model(*images))
        inside = count_flops(lambda: trunk(grid, trunk.encode_support(grid)))
    return {"gflop": total / GIGA, "layer_gflop": (total - inside + layer_flops(trunk, cfg.feature_size)) / GIGA}


def profile(cfg: Config, repeats: int) -> dict[str, Any]:
    """Figures of one network; `repeats` 0 leaves the timing out."""
    model = build_model(as_operator(cfg), pretrained=False).eval()
    result: dict[str, Any] = {
        "parts": {name: {"parameters": a, "learnable": b} for name, (a, b) in parts(model).items()},
        "parameters": parameter_count(model),
        "learnable": parameter_count(model, learnable=True),
        "layer_parameters": parameter_count(model) - scan_parameters(model.trunk),
        **operations(model, cfg),
    }
    if repeats:
        row = in_fresh_process(measure_episodes, cfg, {cfg.val_size: cfg.feature_size}, repeats)[0]
        result |= {"fps": 1 / row["cold"], "cached_fps": 1 / row["cached"]}
    return result


def part_table(result: dict[str, Any]) -> Table:
    """Parameters by part."""
    own = result["own"]
    table = Table("Parts", ("part", "parameters M", "learnable M"))
    rows = {**own["parts"], "all": own}
    for name, row in rows.items():
        table.rows.append((name, f"{row['parameters'] / MILLION:.2f}", f"{row['learnable'] / MILLION:.2f}"))
    return table


def stage_table(result: dict[str, Any]) -> Table:
    """Operations by stage."""
    table = Table("Operations", ("stage", "GFLOP"))
    table.rows += [(name, f"{gflop:.2f}") for name, gflop in result["stages"].items()]
    table.rows.append(("whole episode", f"{result['own']['gflop']:.2f}"))
    if "fps" in result["own"]:
        fps = f"{result['own']['fps']:.3f}, with features known {result['own']['cached_fps']:.3f}"
        table.notes.append(f"Episodes per second: {fps}")
    return table


def block_table(result: dict[str, Any]) -> Table:
    """Beside the paper's Table 4."""
    columns = ("blocks", "M", "learnable", "of layers", "paper", "GFLOP", "of layers", "paper", "fps", "paper (V100)")
    table = Table("Number of blocks, without the ensemble, 473 pixels (the paper's Table 4)", columns)
    for blocks, row in result["blocks"].items():
        _, parameters, gflop, fps = published("table4_blocks")[blocks]
        counts = [row[key] / MILLION for key in ("parameters", "learnable", "layer_parameters")]
        figures = (*counts, parameters, row["gflop"], row["layer_gflop"], gflop)
        own_fps = f"{row['fps']:.3f}" if "fps" in row else "-"
        table.rows.append((str(blocks), *(f"{figure:.1f}" for figure in figures), own_fps, f"{fps:.1f}"))
    table.notes += EXPLANATION
    return table


def main() -> None:
    """Count, measure, write, print."""
    arguments = parse_arguments()
    cfg = load_config(arguments.config, arguments.opts)
    result: dict[str, Any] = {"kind": "profile", "machine": machine(), "config": cfg.model_dump()}
    result |= {"own": profile(cfg, arguments.repeats), "stages": stage_gflops(cfg), "blocks": {}}
    like_paper = cfg.model_copy(update={**TABLE_4, "val_size": encoder(cfg).nearest(473)})
    for blocks in published("table4_blocks"):
        result["blocks"][blocks] = profile(like_paper.model_copy(update={"blocks": blocks}), arguments.repeats)
    about = [f"- {key}: {value}" for key, value in result["machine"].items()]
    tables = (part_table(result), stage_table(result), block_table(result))
    text = "\n".join(["# Profile", "", *about, "", *(table.markdown() for table in tables)])
    atomic_write(arguments.out / "profile.json", json.dumps(result, indent=1) + "\n")
    atomic_write(arguments.out / "profile.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)

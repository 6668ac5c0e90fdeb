"""How fast a method is and what it needs: `python -m tools.benchmark [--arch NAME] [--rows ROW ...] [--quick]`.

It knows the interface of a method alone. Weights and images are random, since neither speed nor memory depends on
them. Every row is measured in a process of its own. Writes benchmark.json and benchmark.md.
"""

import argparse
import json
import os
import platform
import re
import resource
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import distributions
from math import inf, prod
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm import tqdm

from dataset.benchmarks.table import open_benchmark
from dataset.dataset import TrainingEpisodes, collate
from dataset.demo import write_demo
from dataset.index import load_index
from engine.learner import Learner
from engine.loader import StepPlan, load_steps
from engine.optim import amp_dtype, autocast, method_optimizers
from model.backbone.build import build_backbone
from model.build import build_model
from model.inference import FeatureCache, prepare_inference
from model.methods import find_method
from model.methods.method import Method
from prediction.predictor import Predictor
from tools.paper.table import Table
from train import forward
from util.arguments import Parser
from util.config import Config, load_config
from util.distributed import ProcessGroup, pick_device
from util.errors import UserError, run_main
from util.files import atomic_write

Row = dict[str, Any]
Stages = Iterator[tuple[str, int, Callable[[], Any]]]  # a name, times in an episode, what to call
CONFIG = "config/pascal/pascal_split0_resnet50_manet.yaml"
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024))  # M, K, N; the last is one of HMNet's trunk
SCAN_OPERATIONS = 7  # for one state at one token: delta A, its exp, decay * h, delta u * B, sum, C * h, sum
IMAGE_SIZE = 430  # pixels along a side of a generated image, which has as many pixels as PASCAL's 500 x 375
TABLE_4 = {"arch": "HMNet", "ensemble": False, "shot": 1, "feature_size": 64, "fusion": "hmnet", "val_size": 473}
BLOCKS = (4, 6, 8, 10)  # also of Table 4
SIZES = {473: 64, 633: 80, 793: 100, 953: 120, 1113: 140}  # pixels of the paper's Table 9: HMNet's feature size
QUICK_SIZES = {105: 16, 233: 32}


def random_episode(cfg: Config, device: torch.device, size: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Noise: queries `(B, 3, H, H)`, supports `(B, K, 3, H, H)` and masks `(B, K, H, H)`, half of them foreground."""
    masks = torch.zeros(batch, cfg.shot, size, size, device=device)
    masks[..., size // 4 : 3 * size // 4] = 1
    images = torch.randn(batch, 1 + cfg.shot, 3, size, size, device=device)
    return images[:, 0], images[:, 1:], masks


def inference_method(cfg: Config) -> tuple[Method, torch.device]:
    """The method as test.py runs it, but for its weights."""
    device = pick_device(cfg.device)
    return prepare_inference(build_model(cfg, pretrained=False).to(device)), device


def stages(method: Method, query: Tensor, support: Tensor, masks: Tensor) -> Stages:
    """The steps of a method's interface in their order, and its two frozen parts, on one episode, B = 1."""
    shot, last = support.shape[1], method.backbone.levels[-1:]
    images, supports = (x.contiguous(memory_format=torch.channels_last) for x in (query, support[0]))
    maps, support_maps = (method.backbone(x, method.maps) for x in (images, supports))
    features, support_features = method.features(maps, "query"), method.features(support_maps, "support")
    embedded, shown = method.embed(features, "query"), method.embed(support_features, "support")
    state = method.support_state(shown, masks)
    yield "backbone, one image", 1 + shot, lambda: method.backbone(images, method.maps)
    yield "features of its maps, one image", 1 + shot, lambda: method.features(maps, "query")
    if learner := method.base_learner:
        (f4,) = method.backbone(images, last).values()
        yield "within them: base learner", 1 + shot, lambda: learner.features(f4)
    yield "embed, query", 1, lambda: method.embed(features, "query")
    yield "embed, supports", 1, lambda: method.embed(support_features, "support")
    yield "support_state", 1, lambda: method.support_state(shown, masks)
    yield "score", 1, lambda: method.score(embedded, state)


@torch.no_grad()  # in inference mode the counter of operations loses autocast
def measure_stages(cfg: Config, seconds: float) -> list[Row]:
    """Every stage of an episode."""
    method, device = inference_method(cfg)
    rows: list[Row] = []
    with autocast(cfg.amp, device):
        for name, times, call in stages(method, *random_episode(cfg, device, cfg.val_size)):
            rows.append({"stage": name, "times": times, "s": timed(call, seconds), "GFLOP": count_flops(call) / 1e9})
    counted = [row for row in rows if not row["stage"].startswith("within")]
    total = {key: sum(row["times"] * row[key] for row in counted) for key in ("s", "GFLOP")}
    return [*rows, {"stage": "sum over an episode", "times": 1, **total}]


@torch.inference_mode()
def measure_episode(cfg: Config, seconds: float) -> Row:
    """A whole episode as test.py runs it: cold, with the features of its images cached, and with a known support."""
    method, device = inference_method(cfg)
    query, support, masks = random_episode(cfg, device, cfg.val_size)
    names = [[str(number) for number in range(1 + cfg.shot)]]
    full, counted = FeatureCache(method, inf), FeatureCache(method, inf)

    def call(cache: FeatureCache) -> None:
        cache.scores(query, support, masks, names)

    row: Row = {"size": cfg.val_size, "parameters M": parameter_count(method) / 1e6}
    with autocast(cfg.amp, device):
        row["cold s"] = timed(lambda: call(FeatureCache(method, inf)), seconds)
        row["peak MB"] = peak_memory(device) / 2**20
        row["cached s"] = timed(lambda: call(full), seconds)
        state, embedded = method.encode_support(support, masks), method.embed_query(query)
        row["known support s"] = timed(lambda: method.score(embedded, state).at(masks.shape[-2:]), seconds)
    with autocast("off", device):
        row["GFLOP"], row["cached GFLOP"] = (count_flops(lambda: call(counted)) / 1e9 for _ in range(2))
    return row


@torch.inference_mode()
def measure_operators(cfg: Config, seconds: float) -> list[Row]:
    """PyTorch's operators in which a cold episode spends most of its time."""
    method, device = inference_method(cfg)
    episode = random_episode(cfg, device, cfg.val_size)
    kind, key = ("CPU", "self_cpu_time_total") if device.type == "cpu" else ("CUDA", "self_device_time_total")
    with autocast(cfg.amp, device):
        method(*episode)
        with profile(activities=[getattr(ProfilerActivity, kind)]) as profiler:
            method(*episode)
    spent = {event.key: getattr(event, key) / 1e6 for event in profiler.key_averages()}
    slowest, total = sorted(spent, key=spent.__getitem__, reverse=True)[:12], sum(spent.values())
    return [{"operator": name, "s": spent[name], "share": f"{spent[name] / total:.0%}"} for name in slowest]


def measure_parameters(cfg: Config, seconds: float) -> list[Row]:
    """Millions of parameters by part, of all and of those that learn."""
    method, rows = build_model(cfg, pretrained=False), []
    for name, part in [*method.named_children(), ("all", method)]:
        every, learnt = (parameter_count(part, learnable) / 1e6 for learnable in (False, True))
        rows.append({"part": name, "parameters M": every, "learn M": learnt})
    return rows


def measure_training(cfg: Config, seconds: float) -> Row:
    """A step of training on a batch of noise, as train.py takes it."""
    device = pick_device(cfg.device)
    method = build_model(cfg, pretrained=False).to(device).train()
    if not method.is_trained:
        raise UserError(f"arch: {cfg.arch} has nothing to learn, so there is no step of training to measure")
    query, support, masks = random_episode(cfg, device, cfg.train_h, cfg.batch_size)
    batch: Row = {"query": query, "support": support, "support_mask": masks, "query_mask": masks[:, 0]}
    batch |= {"class_index": masks.new_zeros(len(masks), dtype=torch.int64), "names": [["noise"]] * len(masks)}
    optimizers = {name: each.optimizer for name, each in method_optimizers(method, cfg).items()}
    learner = Learner(method, optimizers, ProcessGroup(device), cfg.amp, cfg.compile, partial=True)

    def step() -> None:
        learner.accumulate([batch], partial(forward, method), target="query_mask")
        learner.step()

    taken = timed(step, seconds)
    peak = peak_memory(device) / 2**20
    return {"s": taken, "episodes/s": cfg.batch_size / taken, "GFLOP": count_flops(step) / 1e9, "peak MB": peak}


def measure_loader(cfg: Config, seconds: float) -> Row:
    """Images that one loader worker reads and augments for training each second, of generated JPEG files."""
    with TemporaryDirectory() as folder:
        write_demo(folder, images_per_class=3 + cfg.shot, size=IMAGE_SIZE)
        changes = {"data_root": folder, "train_list": "all", "train_h": cfg.train_h, "train_w": cfg.train_w}
        data = load_config("config/demo.yaml").model_copy(update={**changes, "shot": cfg.shot})
        index, files = load_index(data, "train")
        classes, rule = open_benchmark(data).wanted("train"), find_method(cfg.arch).images
        dataset = TrainingEpisodes(data, index, files, classes, seed=0, epoch=1, rule=rule)
        batches = StepPlan(len(dataset), cfg.batch_size, 1, ProcessGroup(torch.device("cpu"))).batches(seed=0)
        steps = load_steps(dataset, batches, 1, 1, collate)
        next(steps)  # the worker has started
        start = perf_counter()
        images = sum(len(batch["names"]) * (1 + cfg.shot) for (batch,) in steps)
        return {"images/s": images / (perf_counter() - start), "size": IMAGE_SIZE}


def measure_predict(cfg: Config, seconds: float) -> Row:
    """Images that prediction segments each second, of generated JPEG files, with the support set once."""
    method, device = inference_method(cfg)
    predictor = Predictor(method, cfg.val_size, cfg.shot, device, cfg.amp)
    with TemporaryDirectory() as folder:
        write_demo(folder, images_per_class=1, size=IMAGE_SIZE)
        images, masks = (sorted(Path(folder, part).iterdir()) for part in ("JPEGImages", "SegmentationClassAug"))
        predictor.set_support(images[:1], [(masks[0], 1)])
        return {"images/s": 1 / timed(lambda: predictor.predict(images[1]), seconds), "size": IMAGE_SIZE}


def timed(function: Callable[[], Any], seconds: float) -> float:
    """Median seconds of calls, at least one and as many as fit into `seconds`, after one that does not count."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median


def product_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """The best GFLOP/s in products (M, K) x (K, N), by matrix products or 1x1 convolutions.

    On a CPU two libraries compute them, MKL and oneDNN, one of them perhaps at half the other's speed.
    """
    best = 0.0
    for m, k, n in PRODUCTS:
        a, b = (torch.randn(rows, k, dtype=dtype, device=device) for rows in (m, n))
        image = a.view(1, m, 1, k).permute(0, 3, 1, 2)  # channels last
        for way in (lambda a=a, b=b: F.linear(a, b), lambda x=image, b=b: F.conv2d(x, b[:, :, None, None])):
            best = max(best, 2 * m * k * n / timed(way, seconds) / 1e9)
    return best


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations that the products, convolutions, attentions and scans of one call of `function` need.

    A multiplication and an addition are two, an exponential in the scan one. Element-wise operations, norms and
    resizes are not counted.
    """
    formulas = {
        torch.ops.selective_scan.forward: scan_flops,
        torch.ops.selective_scan.backward: lambda grad_y, grad_state, saved, *inputs, **_: 2 * scan_flops(*inputs),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        function()
    return counter.get_total_flops()


def scan_flops(*shapes: Any, **_: Any) -> int:
    """Operations of a scan with inputs of these shapes, in the order of `model.scan.inputs.ScanInputs`."""
    u, A, delta_proj = shapes[0], shapes[2], shapes[8]
    return prod(u) * A[0] * (SCAN_OPERATIONS * A[2] + (2 * delta_proj[-1] if delta_proj else 0))


def parameter_count(module: nn.Module, learnable: bool = False) -> int:
    """Numbers in the parameters of a module, of all or only of those that learn."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learnable)


def peak_memory(device: torch.device | None = None) -> int:
    """The most bytes this process has ever had in memory, or its tensors in that of `device`.

    Linux keeps it per program; `ru_maxrss`, taken elsewhere, may also remember what the process was before it was that.
    """
    if device and device.type != "cpu":
        return torch.get_device_module(device).max_memory_allocated()
    if (status := Path("/proc/self/status")).is_file():
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a new process with as many threads, so that its peak memory is its own.

    Raises UserError when the process dies, as it does where memory does not suffice.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"{function.__name__}: its process was killed, perhaps for lack of memory") from None


def machine() -> Row:
    """What ran, on what; None for packages that are not installed."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.*)", information)
    installed = {package.metadata["Name"]: package.version for package in distributions()}
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        **{name: installed.get(name) for name in ("torch", "numpy", "triton", "mamba_ssm", "causal_conv1d")},
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load average": os.getloadavg()[0],  # before it began; above 0 others were at work too
    }


METHOD_ROWS: dict[str, Callable[[Config, float], Any]] = {  # of any method
    **{"parameters": measure_parameters, "stages": measure_stages, "episode": measure_episode},
    **{"operators": measure_operators, "training": measure_training, "loader": measure_loader},
    "predict": measure_predict,
}
ROWS = METHOD_ROWS | dict.fromkeys(("reference", "sizes", "blocks"), measure_episode)  # and of HMNet


def variants(row: str, cfg: Config, quick: bool) -> list[Row]:
    """The changes of the configuration with which a row is measured, one after the other."""
    if row in ("episode", "training"):
        return [{"amp": amp} for amp in amp_modes(pick_device(cfg.device))]
    if row == "reference":
        return [{"scan": "reference"}]
    if row == "blocks":
        small = {"val_size": cfg.val_size, "feature_size": cfg.feature_size} if quick else {}
        return [{**TABLE_4, **small, "blocks": blocks} for blocks in BLOCKS]
    if row != "sizes":
        return [{}]
    methods = [{"arch": "HMNet", "fusion": fusion} for fusion in ("hmnet", "cross_attention")]
    methods = methods if cfg.arch.startswith("HMNet") else [{"arch": cfg.arch}, *methods]
    sizes = (QUICK_SIZES if quick else SIZES).items()
    return [{**method, "val_size": size, "feature_size": grid} for method in methods for size, grid in sizes]


def amp_modes(device: torch.device) -> tuple[str, ...]:
    """The values of `amp` that may pay on a device."""
    return ("off", "bf16") if device.type == "cpu" else ("off", "bf16", "fp16")


def measure(row: str, cfg: Config, quick: bool, seconds: float) -> list[Row]:
    """Every variant of a row in a process of its own; one that fails says why."""
    found: list[Row] = []
    for changes in variants(row, cfg, quick):
        if "val_size" in changes:
            changes["val_size"] = build_backbone(cfg).valid_size(changes["val_size"])
        try:
            rows = in_fresh_process(ROWS[row], cfg.model_copy(update=changes), seconds)
        except (UserError, torch.OutOfMemoryError) as error:
            rows = {"error": str(error)}
        found += [{**changes, **each} for each in (rows if isinstance(rows, list) else [rows])]
    return found


def run(cfg: Config, rows: Sequence[str], quick: bool, seconds: float) -> Row:
    """Measure the machine's peak in products, then every row that is asked for."""
    device = pick_device(cfg.device)
    types = {amp: amp_dtype(amp, device) or torch.float32 for amp in amp_modes(device)}
    peaks = {amp: product_peak(device, dtype, seconds / 10) for amp, dtype in types.items()}
    result: Row = {"kind": "benchmark", "quick": quick, "machine": machine(), "config": cfg.model_dump()}
    result |= {"peak GFLOP/s": peaks, **{row: measure(row, cfg, quick, seconds) for row in tqdm(rows, disable=None)}}
    for line in (line for row in rows for line in result[row]):
        peak = peaks[line.get("amp", "off")]
        for taken, needed in (("s", "GFLOP"), ("cold s", "GFLOP"), ("cached s", "cached GFLOP")):
            if taken in line and needed in line:
                line[f"{taken.removesuffix('s')}of peak"] = f"{line[needed] / line[taken] / peak:.0%}"
    return result


def report(result: Mapping[str, Any]) -> str:
    """Everything as Markdown."""
    about = {**result["machine"], **{f"peak GFLOP/s, amp {amp}": peak for amp, peak in result["peak GFLOP/s"].items()}}
    text = ["# Benchmark", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    for name in (name for name in ROWS if name in result):
        columns = list(dict.fromkeys(key for row in result[name] for key in row))
        cells = [[row.get(column, "") for column in columns] for row in result[name]]
        table = Table(f"{name}: {(ROWS[name].__doc__ or '').splitlines()[0]}", columns)
        table.rows += [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in cells]
        text.append(table.markdown())
    return "\n".join(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Measure a method's speed, memory and cost.")
    parser.add_argument("--config", default=CONFIG, help=f"YAML file of the experiment; default: {CONFIG}")
    parser.add_argument("--arch", help="name of the method, instead of the config's")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default: all, with --arch those of any method")
    parser.add_argument("--quick", action="store_true", help="small images, about a minute")
    parser.add_argument("--seconds", type=float, default=2, help="for each figure: the median of as many calls as fit")
    parser.add_argument("--out", type=Path, help="folder for the results; default: exp/benchmark/ARCH/ROWS")
    parser.add_opts("key value ..., instead of the config's")
    return parser.parse_args()


def main() -> None:
    """Measure, write, print."""
    arguments = parse_arguments()
    arch = ["arch", arguments.arch] if arguments.arch else []
    cfg, quick = load_config(arguments.config, [*arguments.opts, *arch]), arguments.quick
    if quick:
        size = build_backbone(cfg).valid_size(max(QUICK_SIZES))
        sizes = dict.fromkeys(("val_size", "train_h", "train_w"), size)
        cfg = cfg.model_copy(update={**sizes, "feature_size": max(QUICK_SIZES.values()), "batch_size": 2})
    result = run(cfg, [*(arguments.rows or (METHOD_ROWS if arch else ROWS))], quick, 0 if quick else arguments.seconds)
    folder = arguments.out or Path("exp/benchmark", cfg.arch, *(arguments.rows or []))
    atomic_write(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")
    atomic_write(folder / "benchmark.md", report(result))
    print(report(result))


if __name__ == "__main__":
    run_main(main)

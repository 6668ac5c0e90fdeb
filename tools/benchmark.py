"""How fast methods are and what they need: `python -m tools.benchmark [--arch NAME ...] [--rows ROW ...] [--quick]`.

It knows the interface of a method alone. Weights and images are random, since neither speed nor memory depends on
them but for clusterings, which may end sooner. Every row is measured in a process of its own. Several methods, or
`--arch all`, make one table, each at its own size. Writes benchmark.json and benchmark.md,
of images and supports that grow in size and number also growth.svg.
"""

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
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
from model.methods import METHODS, find_method
from model.methods.method import Method
from prediction.predictor import DEFAULT_CONFIG, Predictor
from tools.measure import count_flops, in_fresh_process, machine, parameter_count, peak_memory, product_peak, timed
from tools.paper.plots import draw_growth, save_svg
from tools.paper.table import Table
from train import forward
from util.arguments import Parser
from util.config import Config, load_config
from util.distributed import ProcessGroup, pick_device
from util.errors import UserError, run_main
from util.files import atomic_write
from util.image import read_image

Row = dict[str, Any]
Stages = Iterator[tuple[str, int, Callable[[], Any]]]  # a name, times in an episode, what to call
CONFIG = "config/pascal/pascal_split0_resnet50_manet.yaml"
GROWTH = {"sizes": "val_size", "shots": "shot"}  # what grows in a row
STREAMED = 8  # images in a row
IMAGE_SIZE = 430  # pixels along a side of a generated image, which has as many pixels as PASCAL's 500 x 375
TABLE_4 = {"arch": "HMNet", "ensemble": False, "shot": 1, "feature_size": 64, "fusion": "hmnet", "val_size": 473}
BLOCKS = (4, 6, 8, 10)  # also of Table 4
SIZES = {473: 64, 633: 80, 793: 100, 953: 120, 1113: 140}  # pixels of the paper's Table 9: HMNet's feature size
QUICK_SIZES = {105: 16, 233: 32}
SHOTS, QUICK_SHOTS = (1, 5, 10, 20), (1, 2)


def random_episode(cfg: Config, device: torch.device, size: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Noise: queries `(B, 3, H, H)`, supports `(B, K, 3, H, H)` and masks `(B, K, H, H)`, half of them foreground."""
    masks = torch.zeros(batch, cfg.shot, size, size, device=device)
    masks[..., size // 4 : 3 * size // 4] = 1
    images = torch.randn(batch, 1 + cfg.shot, 3, size, size, device=device)
    return images[:, 0], images[:, 1:], masks


@torch.inference_mode(False)  # weights made in that mode are not changed for Winograd's way
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

    whole, learnt = (parameter_count(method, learnable) / 1e6 for learnable in (False, True))
    row: Row = {"size": cfg.val_size, "parameters M": whole, "learn M": learnt, "frozen M": whole - learnt}
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
    """Images that prediction segments each second, of generated JPEG files, and the network alone; one support set."""
    method, device = inference_method(cfg)
    predictor = Predictor(method, cfg.val_size, cfg.shot, device, cfg.amp)
    with TemporaryDirectory() as folder:
        write_demo(folder, images_per_class=1, size=IMAGE_SIZE)
        images, masks = (sorted(Path(folder, part).iterdir()) for part in ("JPEGImages", "SegmentationClassAug"))
        predictor.set_support(images[:1], [(masks[0], 1)])
        shown = predictor.network_input(read_image(images[1]))
        network = 1 / timed(lambda: predictor.scores([shown]), seconds)
        streamed = STREAMED / timed(lambda: deque(predictor.stream(images[1:2] * STREAMED), maxlen=0), seconds)
        return {"network images/s": network, "images/s": streamed, "size": IMAGE_SIZE}


METHOD_ROWS: dict[str, Callable[[Config, float], Any]] = {  # of any method
    **{"parameters": measure_parameters, "stages": measure_stages, "episode": measure_episode},
    **{"operators": measure_operators, "training": measure_training, "loader": measure_loader},
    "predict": measure_predict,
}
ROWS = METHOD_ROWS | dict.fromkeys(("reference", "sizes", "shots", "blocks"), measure_episode)  # and of HMNet


def variants(row: str, cfg: Config, quick: bool) -> list[Row]:
    """The changes of the configuration with which a row is measured, one after the other."""
    if row in ("episode", "training"):
        return [{"amp": amp} for amp in amp_modes(pick_device(cfg.device))]
    if row == "reference":
        return [{"scan": "reference"}]
    if row == "blocks":
        small = {"val_size": cfg.val_size, "feature_size": cfg.feature_size} if quick else {}
        return [{**TABLE_4, **small, "blocks": blocks} for blocks in BLOCKS]
    if row not in GROWTH:
        return [{}]
    methods = [{"arch": "HMNet", "fusion": fusion} for fusion in ("hmnet", "cross_attention")]
    methods = methods if cfg.arch.startswith("HMNet") else [{"arch": cfg.arch}, *methods]
    sizes = [{"val_size": size, "feature_size": grid} for size, grid in (QUICK_SIZES if quick else SIZES).items()]
    shots = [{"shot": shot} for shot in (QUICK_SHOTS if quick else SHOTS)]
    return [{**method, **grown} for method in methods for grown in (sizes if row == "sizes" else shots)]


def own_config(arch: str) -> str:
    """A config in which a method has its own size: the one with its name, HMNet's, or that of training-free methods."""
    named = "config/zoo/hmnet_lite.yaml" if arch == "HMNetLite" else CONFIG.replace("manet", arch.lower())
    if Path(named).is_file():
        return named
    with torch.device("meta"):
        is_trained = build_model(load_config(CONFIG, ["arch", arch]), pretrained=False).is_trained
    if is_trained:
        return CONFIG
    return str(DEFAULT_CONFIG) if arch == "adapt" else "config/training_free/lite2.yaml"


def measure_methods(names: Sequence[str], config: str | None, opts: Sequence[str], quick: bool, seconds: float) -> Row:
    """Several methods, each at its own size and without `amp`."""
    rows = []
    for name in tqdm(names, disable=None):
        cfg = load_config(config or own_config(name), [*opts, "arch", name, "amp", "off"])
        row = in_fresh_process(measure_episode, quick_config(cfg) if quick else cfg, seconds)
        rows.append({"method": name, "backbone": cfg.backbone_name, "shot": cfg.shot, **row})
    return {"kind": "benchmark", "quick": quick, "machine": machine(), "methods": rows}


def quick_config(cfg: Config) -> Config:
    """The configuration with small images and batches."""
    size = build_backbone(find_method(cfg.arch).configured(cfg)).valid_size(max(QUICK_SIZES))
    sizes = dict.fromkeys(("val_size", "train_h", "train_w"), size)
    return cfg.model_copy(update={**sizes, "feature_size": max(QUICK_SIZES.values()), "batch_size": 2})


def amp_modes(device: torch.device) -> tuple[str, ...]:
    """The values of `amp` that may pay on a device."""
    if device.type == "cpu":  # with AVX2 alone bf16 is emulated, some fifty times slower
        return ("off",) if torch.backends.cpu.get_cpu_capability() == "AVX2" else ("off", "bf16")
    return ("off", "bf16", "fp16")


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
    peaks = {f"peak GFLOP/s, amp {amp}": peak for amp, peak in result.get("peak GFLOP/s", {}).items()}
    about = {**result["machine"], **peaks, "weights and images": "random"}
    text = ["# Benchmark", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    for name, measured in {**ROWS, "methods": measure_methods}.items():
        if rows := result.get(name):
            columns = list(dict.fromkeys(key for row in rows for key in row))
            table = Table(f"{name}: {(measured.__doc__ or '').splitlines()[0]}", columns)
            cells = [[row.get(column, "") for column in columns] for row in rows]
            table.rows += [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in cells]
            text.append(table.markdown())
    return "\n".join(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Measure the speed, memory and cost of methods.")
    parser.add_argument("--config", help=f"YAML file; default: {CONFIG}, of several methods each one's own")
    parser.add_argument("--arch", nargs="+", default=[], help="a method, instead of the config's; several, or all")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default: all, with --arch those of any method")
    parser.add_argument("--quick", action="store_true", help="small images, about a minute")
    parser.add_argument("--seconds", type=float, default=2, help="for each figure: the median of as many calls as fit")
    parser.add_argument("--out", type=Path, help="folder for the results; default: exp/benchmark/ARCH/ROWS")
    parser.add_opts("key value ..., instead of the config's")
    arguments = parser.parse_args()
    if arguments.arch == ["all"]:
        arguments.arch = [name for name in METHODS if name != "HMNetAMP"]
    if len(arguments.arch) > 1 and arguments.rows:
        raise UserError("--rows: is for one method; several are measured in one row each")
    return arguments


def main() -> None:
    """Measure, write, print."""
    arguments = parse_arguments()
    seconds, rows = 0 if arguments.quick else arguments.seconds, arguments.rows or []
    if len(arguments.arch) > 1:
        names = [*map(str, arguments.arch)]
        result = measure_methods(names, arguments.config, arguments.opts, arguments.quick, seconds)
        folder = Path("methods")
    else:
        arch = [word for name in arguments.arch for word in ("arch", name)]
        cfg = load_config(arguments.config or CONFIG, [*arguments.opts, *arch])
        cfg = quick_config(cfg) if arguments.quick else cfg
        result = run(cfg, [*(rows or (METHOD_ROWS if arch else ROWS))], arguments.quick, seconds)
        folder = Path(cfg.arch, *rows)
    folder = arguments.out or "exp/benchmark" / folder
    atomic_write(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")
    atomic_write(folder / "benchmark.md", report(result))
    if grown := {key: result[row] for row, key in GROWTH.items() if row in result}:
        save_svg(folder / "growth.svg", partial(draw_growth, grown))
    print(report(result))


if __name__ == "__main__":
    run_main(main)

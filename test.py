"""Test a network on the novel classes of a fold: `python test.py --config FILE [--opts key value ...]`."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from util.arguments import evaluation_arguments, experiment_config

if __name__ == "__main__":
    ARGUMENTS = evaluation_arguments()  # before PyTorch, whose import takes seconds

from dataset.benchmarks.table import open_benchmark, test_config
from dataset.episode import empty_classes, write_episodes
from dataset.index import ImageIndex, load_index
from engine.evaluation import (
    Segment,
    describe_test,
    episode_lines,
    find_weights,
    make_episodes,
    run_episodes,
)
from engine.metric import Result, aggregate, format_table, percent
from engine.multiclass import test_generalized, test_ways
from engine.origin import check_origin
from engine.panels import panel_drawer
from engine.support_check import CHANGES, check_support, format_miou_drop, miou_drop
from model.build import build_model, load_frozen_parts
from model.inference import FeatureCache, prepare_inference
from model.methods import find_method
from model.methods.hmnet import HMNet
from model.methods.method import Method
from model.released import load_weights
from util.checkpoint import read_checkpoint
from util.config import Config
from util.distributed import ProcessGroup, connect
from util.errors import run_main
from util.failures import explain_errors
from util.files import atomic_write
from util.image import RGB
from util.logger import RunLog
from util.visualize import save_image

SEEDLESS = ("hsnet", "fptrans")  # protocols that have a seed of their own


class Tested(NamedTuple):
    """What is tested."""

    name: str
    model: Method
    segment: Segment  # scores of an episode
    weights: Path | None
    note: str | None  # on what the weights were trained on


def load_method(cfg: Config, process_group: ProcessGroup) -> Tested:
    """The method that `arch` names, trained or training-free; UserError for weights trained on anything else."""
    model = build_model(cfg, pretrained=False)
    weights, note = None, None
    if model.is_trained:
        weights = find_weights(cfg)
        content = read_checkpoint(weights)
        note = check_origin(weights, content, cfg)
        load_weights(model, content, weights)
    else:
        load_frozen_parts(model, cfg)
    model = prepare_inference(model.to(process_group.device))
    name = "hmnet" if find_method(cfg.arch) is HMNet else cfg.arch
    return Tested(name, model, FeatureCache(model, cfg.feature_cache_mb).scores, weights, note)


def result_name(cfg: Config, method: str) -> str:
    """What tells the files of tests apart that share a folder."""
    data = test_config(cfg)
    parts = [f"test_{cfg.shot}shot", *([] if method == "hmnet" else [method]), *(["bbox"] * (cfg.ann_type == "bbox"))]
    parts += [f"{data.data_set}{data.split}", *filter(None, [cfg.variant])] if cfg.test_set else []
    parts += ["base"] * (cfg.test_classes == "base") + [cfg.protocol] * (cfg.protocol in SEEDLESS)
    return "_".join(parts)


def write_result(path: Path, cfg: Config, method: Tested, results: dict[int, Result], **more: Any) -> None:
    """Everything that a report needs, as JSON."""
    content = {
        "kind": "test",
        "method": method.name,
        "weights": method.weights and str(method.weights),
        "config": cfg.model_dump(),
        "test": describe_test(cfg),
        "classes": open_benchmark(test_config(cfg)).names(),
        "results": [{"seed": seed, **result.to_dict()} for seed, result in results.items()],
        "aggregate": aggregate(list(results.values())),
        **{key: value for key, value in more.items() if value},
    }
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def announce(log: RunLog, cfg: Config, method: Tested, novel: ImageIndex) -> list[str]:
    """Say what is tested on what; returns the classes that `min_class_images` leaves out."""
    data = test_config(cfg)
    known = method.weights or f"none, the {method.name} alone"
    log.info(f"{cfg.data_set} split {cfg.split}, {cfg.shot} shot, weights: {known}")
    if method.note:
        log.warning(method.note)
    about, names = describe_test(cfg), open_benchmark(data).names()
    log.info(", ".join(f"{key} {value}" for key, value in about.items() if value != "" and key != "notes"))
    for note in about["notes"]:
        log.info(f"note: {note}")
    if empty := empty_classes(novel, names):
        log.warning(f"not tested, as no image shows enough of them: {empty}")
    left_out = [names[class_id] for class_id in open_benchmark(data).wanted("test") if class_id not in novel.by_class]
    if left_out:
        log.info(f"left out, with fewer images than min_class_images: {', '.join(left_out)}")
    return left_out


def test(cfg: Config, arguments: Namespace, process_group: ProcessGroup) -> None:
    """Evaluate every seed, then print the figures."""
    method = load_method(cfg, process_group)
    path = arguments.result or cfg.experiment_dir / f"result_{result_name(cfg, method.name)}.json"
    names, panels = open_benchmark(test_config(cfg)).names(), path.parent / f"panels_{result_name(cfg, method.name)}"

    def save_panel(title: str, picture: RGB) -> None:
        save_image(panels / f"{title.replace('/', '_')}.png", picture)

    results: dict[int, Result] = {}
    changed: list[dict[str, Result]] = []  # by what was changed about the supports, for every seed
    lines, draw = "", None
    with RunLog(path.with_suffix(".log"), enabled=process_group.is_main) as log:
        with process_group.main_first():  # the first one scans the masks, the others find its cache
            novel = load_index(test_config(cfg), "test")
        left_out = announce(log, cfg, method, novel[0])
        for seed in cfg.seeds[:1] if cfg.episodes_file or cfg.protocol in SEEDLESS else dict.fromkeys(cfg.seeds):
            episode_set = make_episodes(cfg, seed, cfg.test_episodes, novel)
            if not results:
                if arguments.episodes_out and process_group.is_main:
                    write_episodes(arguments.episodes_out, episode_set.episodes)
                if arguments.visualize:
                    draw = panel_drawer(episode_set, names, arguments.visualize, save_panel)
            results[seed] = run_episodes(
                method.model, cfg, episode_set, process_group, segment=method.segment, observe=draw
            )
            lines += episode_lines(seed, episode_set.episodes, results[seed], names)
            log.info(f"seed {seed}: mIoU {results[seed].miou:.4f}, FB-IoU {results[seed].fb_iou:.4f}")
            draw = None
            if arguments.support_check:
                changed.append(
                    check_support(method.model, cfg, episode_set, novel[0], process_group, method.segment, seed)
                )
        if not process_group.is_main:
            return
        atomic_write(path.with_suffix(".episodes.jsonl"), lines)
        own = list(results.values())
        check = {key: miou_drop(own, [one[key] for one in changed]) for key in CHANGES} if changed else None
        write_result(path, cfg, method, results, support_check=check, left_out=left_out)
        log.info("\n" + format_table({f"seed {seed}": result for seed, result in results.items()}, names))
        if check:
            log.info("\n" + format_miou_drop(check))
        log.info(f"wrote {path}")


def test_several(cfg: Config, arguments: Namespace, process_group: ProcessGroup) -> None:
    """Evaluate with several classes at a time, N-way or generalized."""
    method = load_method(cfg, process_group)
    if method.note and process_group.is_main:
        print(method.note)
    if arguments.ways is not None:
        content = test_ways(method.model, cfg, process_group, arguments.ways)
    else:
        content = test_generalized(method.model, cfg, process_group, arguments.generalized)
    kind = f"{arguments.ways}way" if arguments.ways is not None else "generalized"
    path = arguments.result or cfg.experiment_dir / f"result_{result_name(cfg, method.name)}_{kind}.json"
    how = {**describe_test(cfg), "protocol": content["kind"], "metric_size": content["metric_size"]}
    about = {"method": method.name, "weights": str(method.weights), "config": cfg.model_dump(), "test": how}
    if process_group.is_main:
        content |= {**about, "classes": open_benchmark(test_config(cfg)).names()}
        atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        for figure, value in content["aggregate"].items():
            print(f"{figure} over {len(content['runs'])} runs: {percent(value['mean'])} +- {percent(value['std'])}")
        print(f"wrote {path}")


def main(arguments: Namespace) -> None:
    """The entry point."""
    cfg = experiment_config(arguments)
    run = test if arguments.ways is None and arguments.generalized is None else test_several
    with explain_errors("run the same command again"), connect(cfg.device) as process_group:
        run(cfg, arguments, process_group)


if __name__ == "__main__":
    run_main(lambda: main(ARGUMENTS))

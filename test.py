"""Test a network on the novel classes of a fold: `python test.py --config FILE [--opts key value ...]`."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from util.arguments import evaluation_arguments, experiment_config

if __name__ == "__main__":
    ARGUMENTS = evaluation_arguments()  # before PyTorch, whose import takes seconds

from dataset.episode import empty_classes, write_episodes
from dataset.index import class_names, config_classes, load_index, test_config
from engine.evaluation import (
    TRAINING_FREE,
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
from engine.support_check import CHANGES, check_support, falls, format_falls
from model.build import build_model
from model.hmnet import HMNet
from model.inference import FeatureCache, prepare_inference
from model.released import load_weights
from util.checkpoint import read_checkpoint
from util.config import Config
from util.distributed import World, connect
from util.errors import run_main
from util.failures import explain_errors
from util.files import atomic_write
from util.logger import RunLog
from util.visualize import Picture, save_image

SEEDLESS = ("hsnet", "fptrans")  # protocols that have a seed of their own


def write_result(
    path: Path, cfg: Config, method: str, weights: Path | None, results: dict[int, Result], **more: Any
) -> None:
    """Everything that a report needs, as JSON."""
    content = {
        "kind": "test",
        "method": method,
        "weights": None if weights is None else str(weights),
        "config": cfg.model_dump(),
        "test": describe_test(cfg),
        "classes": class_names(test_config(cfg)),
        "results": [{"seed": seed, **result.to_dict()} for seed, result in results.items()],
        "aggregate": aggregate(list(results.values())),
        **{key: value for key, value in more.items() if value},
    }
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_method(cfg: Config, method: str, world: World) -> tuple[HMNet, Segment, Path | None]:
    """The network, what segments an episode, and the weights of a trained one."""
    weights = find_weights(cfg) if method == "hmnet" else None
    model = build_model(cfg, pretrained=weights is None)
    if weights:
        load_weights(model, weights)
    prepare_inference(model.to(world.device))
    return model, FeatureCache(model, cfg.feature_cache_mb).scores if weights else TRAINING_FREE[method](model), weights


def result_name(cfg: Config, method: str) -> str:
    """What tells the files of tests apart that share a folder."""
    data = test_config(cfg)
    parts = [f"test_{cfg.shot}shot", *([] if method == "hmnet" else [method]), *(["bbox"] * (cfg.ann_type == "bbox"))]
    parts += [f"{data.data_set}{data.split}", *filter(None, [cfg.variant])] if cfg.test_set else []
    parts += ["base"] * (cfg.test_classes == "base") + [cfg.protocol] * (cfg.protocol in SEEDLESS)
    return "_".join(parts)


def test(cfg: Config, arguments: Namespace, world: World) -> None:
    """Evaluate every seed, then print the figures."""
    method, data = arguments.method, test_config(cfg)
    origin = check_origin(path := find_weights(cfg), read_checkpoint(path), cfg) if method == "hmnet" else None
    model, segment, weights = load_method(cfg, method, world)
    path = arguments.result or cfg.experiment_dir / f"result_{result_name(cfg, method)}.json"
    log = RunLog(path.with_suffix(".log"), talks=world.is_main)
    log.info(f"{cfg.data_set} split {cfg.split}, {cfg.shot} shot, weights: {weights or f'none, the {method} alone'}")
    if origin:
        log.warning(origin)
    about = describe_test(cfg)
    log.info(", ".join(f"{key} {value}" for key, value in about.items() if value != "" and key != "notes"))
    for note in about["notes"]:
        log.info(f"note: {note}")
    names, draw, panels = class_names(data), None, path.parent / f"panels_{result_name(cfg, method)}"

    def save_panel(title: str, picture: Picture) -> None:
        save_image(panels / f"{title.replace('/', '_')}.png", picture)

    results: dict[int, Result] = {}
    changed: list[dict[str, Result]] = []  # by what was changed about the supports, for every seed
    lines = ""
    with world.main_first():  # the first one scans the masks, the others find its cache
        novel = load_index(data, "test")
    if empty := empty_classes(novel[0], names):
        log.warning(f"not tested, as no picture shows enough of them: {empty}")
    left_out = [names[class_id] for class_id in config_classes(data, "test") if class_id not in novel[0].by_class]
    if left_out:
        log.info(f"left out, with fewer images than min_class_images: {', '.join(left_out)}")
    for seed in cfg.seeds[:1] if cfg.episodes_file or cfg.protocol in SEEDLESS else dict.fromkeys(cfg.seeds):
        episode_set = make_episodes(cfg, seed, cfg.test_episodes, novel)
        if not results:
            if arguments.episodes_out and world.is_main:
                write_episodes(arguments.episodes_out, episode_set.episodes)
            if arguments.visualize:
                draw = panel_drawer(episode_set, names, arguments.visualize, save_panel)
        results[seed] = run_episodes(model, cfg, episode_set, world, segment=segment, observe=draw)
        lines += episode_lines(seed, episode_set.episodes, results[seed], names)
        log.info(f"seed {seed}: mIoU {results[seed].miou:.4f}, FB-IoU {results[seed].fb_iou:.4f}")
        draw = None
        if arguments.support_check:
            changed.append(check_support(model, cfg, episode_set, novel[0], world, segment, seed))
    if world.is_main:
        atomic_write(path.with_suffix(".episodes.jsonl"), lines)
        own = list(results.values())
        check = {key: falls(own, [one[key] for one in changed]) for key in CHANGES} if changed else None
        write_result(path, cfg, method, weights, results, support_check=check, left_out=left_out)
        log.info("\n" + format_table({f"seed {seed}": result for seed, result in results.items()}, names))
        if check:
            log.info("\n" + format_falls(check))
        log.info(f"wrote {path}")
    log.close()


def test_several(cfg: Config, arguments: Namespace, world: World) -> None:
    """Evaluate with several classes at a time, N-way or generalized."""
    model, _, weights = load_method(cfg, "hmnet", world)
    if arguments.ways is not None:
        content = test_ways(model, cfg, world, arguments.ways)
    else:
        content = test_generalized(model, cfg, world, arguments.generalized)
    kind = f"{arguments.ways}way" if arguments.ways is not None else "generalized"
    path = arguments.result or cfg.experiment_dir / f"result_{result_name(cfg, 'hmnet')}_{kind}.json"
    how = {**describe_test(cfg), "protocol": content["kind"], "metric_size": content["metric_size"]}
    about = {"method": "hmnet", "weights": str(weights), "config": cfg.model_dump(), "test": how}
    if world.is_main:
        content |= {**about, "classes": class_names(test_config(cfg))}
        atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        for figure, value in content["aggregate"].items():
            print(f"{figure} over {len(content['runs'])} runs: {percent(value['mean'])} +- {percent(value['std'])}")
        print(f"wrote {path}")


def main(arguments: Namespace) -> None:
    """The entry point."""
    cfg = experiment_config(arguments)
    run = test if arguments.ways is None and arguments.generalized is None else test_several
    with explain_errors("run the same command again"), connect(cfg.device) as world:
        run(cfg, arguments, world)


if __name__ == "__main__":
    run_main(lambda: main(ARGUMENTS))

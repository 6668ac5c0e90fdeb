"""Test a network on the novel classes of a fold: `python test.py --config FILE [--opts key value ...]`."""

from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from util.arguments import evaluation_arguments, experiment_config

if __name__ == "__main__":
    ARGUMENTS = evaluation_arguments()  # before PyTorch, whose import takes seconds

from dataset.benchmarks.table import open_benchmark, test_config
from dataset.episode import empty_classes, write_episodes
from dataset.index import ImageIndex, load_index
from engine.evaluation import Segment, describe_test, find_weights, make_episodes, run_episodes
from engine.identity import TestIdentity, identify_test, method_name
from engine.metric import aggregate, format_table, percent
from engine.multiclass import test_generalized, test_ways
from engine.origin import check_origin, network_note
from engine.panels import clear_panels, panel_drawer, panel_saver
from engine.results import (
    EpisodeRow,
    Metrics,
    OneClassResult,
    SeedMetrics,
    SeveralClassesResult,
    episode_rows,
    write_result,
)
from engine.support_check import CHANGES, check_support, format_miou_drop, miou_drop
from model.build import build_model, load_frozen_parts
from model.inference import FeatureCache, prepare_inference
from model.methods.method import Method
from model.released import load_weights
from util.checkpoint import read_checkpoint
from util.config import Config
from util.distributed import ProcessGroup, connect
from util.errors import UserError, run_main
from util.failures import explain_errors
from util.logger import RunLog


class Tested(NamedTuple):
    """What is tested."""

    name: str
    model: Method
    segment: Segment  # scores of an episode
    weights: Path | None
    notes: list[str]  # on what the weights were trained on


def load_method(cfg: Config, process_group: ProcessGroup) -> Tested:
    """The method that `arch` names, trained or training-free; UserError for weights trained on anything else."""
    model = build_model(cfg, pretrained=False)
    weights, notes = None, list[str | None]()
    if model.is_trained:
        weights = find_weights(cfg)
        content = read_checkpoint(weights)
        notes = [check_origin(weights, content, cfg), network_note(content, cfg)]
        load_weights(model, content, weights)
    else:
        load_frozen_parts(model, cfg)
    model = prepare_inference(model.to(process_group.device))
    segment = FeatureCache(model, cfg.feature_cache_mb).scores
    return Tested(method_name(cfg), model, segment, weights, [note for note in notes if note])


def announce(log: RunLog, cfg: Config, method: Tested, novel: ImageIndex) -> list[str]:
    """Say what is tested on what; returns the classes that `min_class_images` leaves out."""
    data = test_config(cfg)
    known = method.weights or f"none, the {method.name} alone"
    log.info(f"{cfg.data_set} split {cfg.split}, {cfg.shot} shot, weights: {known}")
    for note in method.notes:
        log.warning(note)
    about, names = describe_test(cfg, novel), open_benchmark(data).names()
    log.info(", ".join(f"{key} {value}" for key, value in about if value != "" and key != "notes"))
    if cfg.test_seeds != tuple(dict.fromkeys(cfg.seeds)):
        drawn = f"the episodes are those of {cfg.episodes_file}" if cfg.episodes_file else f"{cfg.protocol} has its own"
        log.info(f"seeds {cfg.seeds}: not used, {drawn}; the result is called seed {cfg.test_seeds[0]}")
    for note in about.notes:
        log.info(f"note: {note}")
    if empty := empty_classes(novel, names):
        log.warning(f"not tested, as no image shows enough of them: {empty}")
    left_out = [names[class_id] for class_id in open_benchmark(data).wanted("test") if class_id not in novel.by_class]
    if left_out:
        log.info(f"left out, with fewer images than min_class_images: {', '.join(left_out)}")
    return left_out


def test(cfg: Config, arguments: Namespace, process_group: ProcessGroup) -> None:
    """Evaluate every seed, then print the metrics."""
    method = load_method(cfg, process_group)
    tested = identify_test(cfg, arguments.config, method.name, method.weights, arguments.result)
    names = tested.about["classes"]
    results: dict[int, Metrics] = {}
    changed: list[dict[str, Metrics]] = []  # by what was changed about the supports, for every seed
    rows, draw = [], None
    with RunLog(tested.path.with_suffix(".log"), enabled=process_group.is_main) as log:
        with process_group.main_first():  # the first one scans the masks, the others find its cache
            novel = load_index(test_config(cfg), "test")
            if arguments.visualize and process_group.is_main:
                clear_panels(tested.panels)
        left_out = announce(log, cfg, method, novel[0])
        tested.about["test"] = describe_test(cfg, novel[0])
        for seed in cfg.test_seeds:
            episode_set = make_episodes(cfg, seed, cfg.test_episodes, novel)
            if not results:
                if arguments.episodes_out and process_group.is_main:
                    write_episodes(arguments.episodes_out, episode_set.episodes)
                if arguments.visualize:
                    draw = panel_drawer(episode_set, names, arguments.visualize, panel_saver(tested.panels))
            results[seed] = run_episodes(
                method.model, cfg, episode_set, process_group, segment=method.segment, observe=draw
            )
            rows += episode_rows(seed, episode_set.episodes, results[seed], names)
            log.info(f"seed {seed}: mIoU {results[seed].miou:.4f}, FB-IoU {results[seed].fb_iou:.4f}")
            draw = None
            if arguments.support_check:
                changed.append(
                    check_support(method.model, cfg, episode_set, novel[0], process_group, method.segment, seed)
                )
        if process_group.is_main:
            write_test(log, tested, results, rows, changed, left_out)


def write_test(
    log: RunLog,
    tested: TestIdentity,
    results: dict[int, Metrics],
    rows: list[EpisodeRow],
    changed: list[dict[str, Metrics]],
    left_out: list[str],
) -> None:
    """Write the result, and print it."""
    own = list(results.values())
    check = {key: miou_drop(own, [one[key] for one in changed]) for key in CHANGES} if changed else {}
    result = OneClassResult(
        kind="test",
        **tested.about,
        left_out=left_out,
        results=[SeedMetrics(seed=seed, **dict(metrics)) for seed, metrics in results.items()],
        aggregate=aggregate(own),
        support_check=check,
    )
    write_result(result, rows)
    log.info("\n" + format_table({f"seed {seed}": metrics for seed, metrics in results.items()}, result.classes))
    if check:
        log.info("\n" + format_miou_drop(check))
    log.info(f"wrote {tested.path}")


def test_several(cfg: Config, arguments: Namespace, process_group: ProcessGroup) -> None:
    """Evaluate with several classes at a time, N-way or generalized; UserError where the episodes are given."""
    if cfg.episodes_file:
        raise UserError("episodes_file: should be empty with --ways and --generalized, which draw their own episodes")
    method = load_method(cfg, process_group)
    if process_group.is_main:
        print(*method.notes, sep="\n", end="\n" if method.notes else "")
    kind = f"{arguments.ways}way" if arguments.ways is not None else "generalized"
    tested = identify_test(cfg, arguments.config, method.name, method.weights, arguments.result, f"_{kind}")
    if arguments.ways is not None:
        content = test_ways(method.model, cfg, process_group, arguments.ways)
    else:
        content = test_generalized(method.model, cfg, process_group, arguments.generalized)
    how = {"protocol": content["kind"], "metric_size": content["metric_size"]}
    result = SeveralClassesResult(**content, **tested.about, test=describe_test(cfg).model_copy(update=how))
    if process_group.is_main:
        write_result(result)
        for name, value in result.aggregate.items():
            print(f"{name} over {len(result.runs)} runs: {percent(value.mean)} +- {percent(value.std)}")
        print(f"wrote {tested.path}")


def main(arguments: Namespace) -> None:
    """The entry point."""
    cfg = experiment_config(arguments)
    run = test if arguments.ways is None and arguments.generalized is None else test_several
    with explain_errors("run the same command again"), connect(cfg.device) as process_group:
        run(cfg, arguments, process_group)


if __name__ == "__main__":
    run_main(lambda: main(ARGUMENTS))

"""Figures for papers: `python -m tools.figures {panels,states,interception,curves,bars,architecture} --help`.

Each command writes PDF and PNG and, beside them, the drawn numbers as JSON. `panels` is the paper's Figure 4, `states`
its Figure 5 and `interception` its Figure 7. `architecture` draws the figures of README and docs.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset.benchmarks.table import open_benchmark
from dataset.dataset import EvaluationEpisodes
from engine.evaluation import EpisodeSet, Outcome, expected_weights, find_weights, make_episodes, run_episodes
from engine.metric import moment
from model.build import build_model, load_frozen_parts
from model.inference import prepare_inference
from model.methods.hmnet import HMNet
from model.methods.method import Method
from model.released import load_weights
from tools.paper.analysis import enhancement, state_cosines, visits
from tools.paper.architecture import draw_diagrams
from tools.paper.example import draw_example
from tools.paper.history import Bar, read_bars, read_course, short_names
from tools.paper.plots import draw_bars, draw_curves, draw_enhancement, draw_states, save, write_numbers
from tools.paper.published import published
from tools.paper.runs import COMPONENTS
from tools.paper.table import Table, csv_text
from util.arguments import Parser
from util.config import Config, load_config
from util.distributed import ProcessGroup, pick_device
from util.errors import UserError, run_main
from util.failures import explain_errors
from util.files import atomic_write
from util.image import RGB, resize_image
from util.schema import keys_of
from util.visualize import GAP, PAPER, episode_panel, overlay, save_image

SAME_DATA = ("data_set", "data_root", "val_list", "split", "folds", "use_split_coco", "shot", "protocol", "ann_type")
Enhancement = Mapping[int, Mapping[str, tuple[float, float]]]  # of an episode, as tools.paper.analysis has it
DISTINCTIVE = (*keys_of("network"), "manual_seed", "weight")  # in names, if different


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m tools.figures", description="Draw figures for papers.")
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "panels": "Figure 4: the same episodes segmented by two networks",
        "states": "Figure 5: the support in SRM's hidden state, segment by segment, with and without recap",
        "interception": "Figure 7: query beside support foreground, scan input and scan output, without and with QIM",
    }
    for name, text in about.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", required=True, help="YAML file of the first network")
        command.add_argument("--opts", nargs="*", default=[], help="key value ..., instead of the config's")
        command.add_argument("--against", metavar="FILE", help="the second network's; default: the first one's")
        command.add_argument("--against-opts", nargs="*", metavar="OPT", help="key value ..., for the second network")
        count = {"panels": 6, "states": 1, "interception": 50}[name]
        command.add_argument(
            "--count", type=int, default=count, help=f"episodes, spread over the test's list ({count})"
        )
        command.add_argument("--numbers", nargs="+", type=int, help="these episodes of the list instead")
    curves = commands.add_parser("curves", help="loss and accuracy in training, mIoU in validation")
    curves.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training, or its result.json")
    bars = commands.add_parser("bars", help="IoU of every class")
    bars.add_argument("runs", nargs="+", type=Path, metavar="RESULT", help="result_test_*.json")
    for command in commands.choices.values():
        command.add_argument("--names", nargs="+", metavar="NAME", help="of the networks or runs, for the legend")
        command.add_argument("--out", type=Path, default=Path("exp/figures"), help="folder for the figures")
    what = "the network, the rooms of this project and an example, for README and docs"
    architecture = commands.add_parser("architecture", help=what)
    architecture.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the figures")
    return parser.parse_args(words)


def two_networks(arguments: argparse.Namespace, default: Sequence[str]) -> tuple[dict[str, Config], EpisodeSet]:
    """Both networks' configs by their names, and the episodes to show.

    The second config is that of --against, or the first with --against-opts (or `default`). Raises UserError when they
    would not see the same episodes.
    """
    first = load_config(arguments.config, arguments.opts)
    changes = default if arguments.against_opts is None else arguments.against_opts
    if arguments.against:
        second = load_config(arguments.against, arguments.against_opts or [])
    elif changes:
        second = load_config(arguments.config, [*arguments.opts, *changes])
    else:
        raise UserError("panels compares two networks: give --against FILE or --against-opts key value ...")
    for key in SAME_DATA:
        if getattr(first, key) != getattr(second, key):
            raise UserError(f"{key}: {getattr(first, key)!r} and {getattr(second, key)!r}: both need the same episodes")
    names = name_runs(arguments.names, describe(first, second))
    return dict(zip(names, (first, second), strict=True)), spread(first, arguments.count, arguments.numbers)


def name_runs(given: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """The names for a legend; UserError when there are too few or too many, or two alike."""
    chosen = list(given or names)
    if len(chosen) != len(names) or len(set(chosen)) < len(chosen):
        raise UserError(f"--names {' '.join(chosen)}: should be {len(names)} different names")
    return chosen


def describe(first: Config, second: Config) -> list[str]:
    """Names of two networks by the settings in which they differ."""
    keys = [key for key in DISTINCTIVE if getattr(first, key) != getattr(second, key)]
    if "fusion" in keys:  # the components are HMNet's alone
        keys = [key for key in keys if key not in COMPONENTS]
    names = [", ".join(f"{key} {getattr(cfg, key)}" for key in keys).lower() for cfg in (first, second)]
    return names if keys else [str(find_weights(cfg)) for cfg in (first, second)]


def spread(cfg: Config, count: int, numbers: Sequence[int] | None) -> EpisodeSet:
    """`count` of the test's episodes at equal distances, or those of these numbers."""
    chosen = make_episodes(cfg, cfg.seeds[0], cfg.test_episodes)
    total = len(chosen.episodes)
    if count < 1:
        raise UserError(f"--count {count}: should be at least 1")
    places = list(numbers or dict.fromkeys(i * total // count for i in range(count)))
    if wrong := [place for place in places if not 0 <= place < total]:
        raise UserError(f"--numbers {wrong[0]}: the test has the episodes 0 to {total - 1} (test_episodes)")
    return chosen._replace(episodes=[chosen.episodes[place] for place in places])


def ready_method(cfg: Config) -> Method:
    """The method of a config, trained if it has anything to learn, ready for inference."""
    method = build_model(cfg, pretrained=False)
    if method.is_trained:
        load_weights(method, find_weights(cfg))
    else:
        load_frozen_parts(method, cfg)
    return prepare_inference(method.to(pick_device(cfg.device)))


def items(cfg: Config, episode_set: EpisodeSet) -> Iterator[tuple[HMNet, dict[str, Any]]]:
    """The trained network with each of the episodes; UserError for a method that is not HMNet."""
    model, dataset = ready_method(cfg), EvaluationEpisodes(cfg, *episode_set)
    if not isinstance(model, HMNet):
        raise UserError(f"arch: {cfg.arch} has no Mamba blocks to look into; take HMNet")
    for number in tqdm(range(len(dataset)), "episodes", leave=False, disable=None):
        yield model, dataset[number]


def about(kind: str, configs: Mapping[str, Config], episode_set: EpisodeSet) -> dict[str, Any]:
    """Where a figure's numbers come from."""
    weights = [expected_weights(cfg) for cfg in configs.values()]  # no file for a method without training
    files = [str(path) if path.is_file() else None for path in weights]
    return {"kind": kind, "weights": files, "episodes": len(episode_set.episodes)}


def moments(values: Tensor) -> list[dict[str, float | None]]:
    """Mean and standard deviation over episodes, in per cent, of cosines (E, P)."""
    return [moment(column).model_dump() for column in (100 * values).T.tolist()]


def panels(arguments: argparse.Namespace) -> list[Path]:
    """Figure 4: support(s) | query | truth | first network | second network, a row per episode."""
    configs, episode_set = two_networks(arguments, [])
    outcomes: list[list[Outcome]] = []
    for cfg in configs.values():
        seen: list[Outcome] = []
        run_episodes(ready_method(cfg), cfg, episode_set, ProcessGroup(pick_device(cfg.device)), observe=seen.append)
        outcomes.append(sorted(seen, key=lambda outcome: outcome.number))
    classes, images, rows = open_benchmark(next(iter(configs.values()))).names(), [], []
    for episode, *both in zip(episode_set.episodes, *outcomes, strict=True):
        predictions = {n: (o.prediction.cpu().numpy(), o.iou) for n, o in zip(configs, both, strict=True)}
        shown, (query, *supports) = classes[episode.class_id], both[0].names
        shots, image, truth = both[0].images(episode_set.files)
        images.append(episode_panel(shots, image, truth, predictions, shown))
        iou = {name: value for name, (_, value) in predictions.items()}
        rows.append({"query": query, "support": supports, "class": shown, "iou": iou})
    width = max(image.shape[1] for image in images)
    spaces = [((0, GAP), (0, width - image.shape[1]), (0, 0)) for image in images]
    rows_below = [np.pad(image, space, constant_values=PAPER[0]) for image, space in zip(images, spaces, strict=True)]
    files = [arguments.out / f"figure4{suffix}" for suffix in (".pdf", ".png", ".json")]
    for file in files[:2]:
        save_image(file, np.concatenate(rows_below)[:-GAP])
    write_numbers(files[2], {**about("figure 4", configs, episode_set), "rows": rows})
    return files


def states(arguments: argparse.Namespace) -> list[Path]:
    """Figure 5: the support in the first SRM's state after each segment; by default without recap: `srm basic`."""
    configs, episode_set = two_networks(arguments, ["srm", "basic"])
    series: dict[str, Any] = {}
    maps: dict[str, Any] = {}
    for name, cfg in configs.items():
        found = [state_cosines(visits(model, item)[0]) for model, item in items(cfg, episode_set)]
        series[name] = {part: moments(torch.stack([one[part][1] for one in found])) for part in found[0]}
        maps[name] = [cosines.cpu().numpy() for cosines, _ in found[0].values()]
    numbers = {
        **about("figure 5", configs, episode_set),
        "series": series,
        "published": published("figure5_hidden_state"),
    }
    support = support_image(next(iter(configs.values())), episode_set)
    return save(arguments.out / "figure5", lambda: draw_states(numbers, maps, support), numbers)


def support_image(cfg: Config, episode_set: EpisodeSet) -> RGB:
    """The first support of the first episode with its mask."""
    item = EvaluationEpisodes(cfg, *episode_set)[0]
    image = episode_set.files.image(item["names"][1]).astype(np.float32)
    square = resize_image(image, cfg.val_size, cfg.val_size).round().clip(0, 255).astype(np.uint8)
    return overlay(square, item["support_mask"][0].numpy())


def interception(arguments: argparse.Namespace) -> list[Path]:
    """Figure 7: the scan's input and output beside the support's, with QIM and without: `srm basic qim none`."""
    configs, episode_set = two_networks(arguments, ["srm", "basic", "qim", "none"])
    found = [[enhancement(model, item) for model, item in items(cfg, episode_set)] for cfg in configs.values()]
    blocks = sorted(set.intersection(*({number for one in half for number in one} for half in found)))
    if not blocks:
        raise UserError("the networks have no hybrid block at the same place, or no episode shows an object")
    places = {**{f"block {block + 1}": [block] for block in blocks}, "mean": blocks}
    with_qim, without = ({place: read_blocks(half, some) for place, some in places.items()} for half in found)
    sources = {"before": (with_qim, "u"), "without": (without, "y"), "with": (with_qim, "y")}
    rows: list[dict[str, Any]] = []
    for place in places:
        rows.append({"name": place, **{key: half[place][reading][0] for key, (half, reading) in sources.items()}})
    paper = zip(sources, published("figure7_qim"), strict=True)
    rows.append({"name": "published", **{key: {"mean": value, "std": None} for key, value in paper}})
    read: dict[str, Any] = {}
    for name, half in zip(configs, (with_qim, without), strict=True):
        del half["mean"]
        read[name] = {place: {n: [m["mean"] for m in both] for n, both in one.items()} for place, one in half.items()}
        print(reading_table(name, read[name]).markdown())
    numbers = {**about("figure 7", configs, episode_set), "rows": rows, "readings": read}
    if len(set(numbers["weights"])) == 1:
        trained = "the paper's without QIM was trained so: --against-opts ... exp DIR."
        print(f"Both networks have the same weights; {trained}\n")
    return save(arguments.out / "figure7", lambda: draw_enhancement(numbers), numbers)


def read_blocks(found: Sequence[Enhancement], blocks: Sequence[int]) -> dict[str, list[dict[str, float | None]]]:
    """By reading, mean and deviation over episodes and blocks: of the query's object, and of the whole query."""
    seen = [one[block] for one in found for block in blocks if block in one]
    return {reading: moments(torch.tensor([one[reading] for one in seen])) for reading in seen[0]}


def reading_table(name: str, by_block: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """What figure 7 would be of a network if "features" meant this or that."""
    title = f"Figure 7, {name}: cosine of the query's object (whole query) with the support's"
    table = Table(title, ("", *next(iter(by_block.values()))))
    for block, values in by_block.items():
        table.rows.append((block, *(f"{part:.1f} ({whole:.1f})" for part, whole in values.values())))
    return table


def curves(arguments: argparse.Namespace) -> list[Path]:
    """Learning curves of any number of trainings."""
    courses = [read_course(path) for path in arguments.runs]
    names = name_runs(arguments.names, short_names(arguments.runs))
    named = dict(zip(names, courses, strict=True))
    numbers = {"kind": "curves", "runs": {k: {**asdict(v), "path": str(v.path)} for k, v in named.items()}}
    return save(arguments.out / "curves", lambda: draw_curves(named), numbers)


def bars(arguments: argparse.Namespace) -> list[Path]:
    """IoU by class of any number of tests, also as CSV."""
    tests, path = [read_bars(path) for path in arguments.runs], arguments.out / "bars"
    named = dict(zip(name_runs(arguments.names, short_names(arguments.runs)), tests, strict=True))
    columns = ("run", "class", *Bar._fields)
    rows = [(name, key, *bar) for name, test in named.items() for key, bar in test.items()]
    atomic_write(path.with_suffix(".csv"), csv_text(columns, rows))
    numbers = {"kind": "bars", "bars": [dict(zip(columns, row, strict=True)) for row in rows]}
    return [*save(path, lambda: draw_bars(named), numbers), path.with_suffix(".csv")]


def architecture(arguments: argparse.Namespace) -> list[Path]:
    """The diagrams of network and rooms, and the example."""
    return [*draw_diagrams(arguments.out), draw_example(arguments.out / "example.jpg")]


FIGURES = {"panels": panels, "states": states, "interception": interception, "curves": curves, "bars": bars}
FIGURES |= {"architecture": architecture}


def main(words: Sequence[str] | None = None) -> None:
    """Draw one figure and say where it is."""
    arguments = parse_arguments(words)
    with explain_errors("give another --out"):
        for path in FIGURES[arguments.command](arguments):
            print(path)


if __name__ == "__main__":
    run_main(main)

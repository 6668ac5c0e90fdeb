"""What predict.py does: plan, segment, write; every process its share."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from engine.origin import checkpoint_config
from prediction.formats.table import chosen_formats, write_formats
from prediction.gallery import write_gallery
from prediction.manifest import Part, read_manifest, write_manifest
from prediction.outputs import PredictionPlan, begin, find_queries, fingerprint, is_ours, make_plan, segment_files
from prediction.predictor import DEFAULT_CONFIG, Predictor
from prediction.support import read_support, select
from util.config import Config, load_config
from util.distributed import ProcessGroup, connect
from util.errors import UserError, printable
from util.failures import explain_errors
from util.files import claimed

AGAIN = "run the same command again, which goes on from there"


def plan_run(cfg: Config, arguments: argparse.Namespace) -> PredictionPlan:
    """Read the supports, find the images, and see what is left to do."""
    out: Path = arguments.out
    support = read_support(arguments.support, arguments.boxes, arguments.mask)
    if arguments.classes:
        support = select(support, arguments.classes)
    queries = find_queries(arguments.query, [out / "masks", out / "overlays", arguments.support])
    settings = fingerprint(cfg, arguments.weights, support, queries.root)
    plan = make_plan(out, support, queries, settings, arguments.overwrite)
    shots = ", ".join(f"{item.name} ({len(item.images)})" for item in support)
    print(
        f"method: {cfg.arch}, " + (f"weights {arguments.weights}" if arguments.weights else "without trained weights")
    )
    print(f"support: {shots}; {len(queries.files)} images, {len(queries.files) - len(plan.left)} of them done before")
    return plan


def open_predictor(cfg: Config, weights: Path | None, device: str) -> Predictor:
    """A predictor of a trained network, or of the training-free method that the config names."""
    if weights is None:
        return Predictor.from_method(cfg.arch, cfg, device)
    return Predictor.from_checkpoint(cfg, weights, device)


def predict(cfg: Config, arguments: argparse.Namespace, process_group: ProcessGroup) -> list[str]:
    """Do this process's share of what is left; returns a line for each image that cannot be read."""
    plan = process_group.broadcast(plan_run(cfg, arguments) if process_group.is_main else None)
    assert plan
    mine = plan.left[process_group.rank :: process_group.size]
    complaints = []
    if mine:
        predictor = open_predictor(cfg, arguments.weights, str(process_group.device))
        predictor.set_support({item.name: (item.images, item.masks) for item in plan.support})
    if process_group.is_main:  # weights and supports are as they should be: from here on something is written
        begin(plan)
    process_group.barrier()
    if mine:
        progress = tqdm(total=len(mine), unit="image", disable=process_group.no_bar)
        with Part(arguments.out, process_group.rank) as part, progress as bar:
            for count, lines in segment_files(predictor, plan, mine, part, arguments.batch):
                bar.update(count)
                complaints += lines
    complaints = sorted(line for lines in process_group.gather(complaints) for line in lines)
    if process_group.is_main:
        print(f"{len(plan.left) - len(complaints)} images segmented, see {printable(str(arguments.out))}")
    return complaints


def finish(arguments: argparse.Namespace, complaints: Sequence[str]) -> int:
    """Join the manifest's parts, write the page, print what could not be read; returns the exit code."""
    out: Path = arguments.out
    records = read_manifest(out)
    write_manifest(out, records)
    write_formats(chosen_formats(arguments.format), out)
    if arguments.html:
        write_gallery(out / "index.html", out.resolve().name, records, complaints)
    if complaints:
        lines = [f"{len(complaints)} images could not be read:", *map(printable, complaints)]
        print("\n".join(lines), file=sys.stderr)
    return 1 if complaints else 0


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit code."""
    arch = ["arch", arguments.arch] if arguments.arch else []
    opts = [*arch, *arguments.opts]
    chosen_formats(arguments.format)  # a mistake in it is said before the work
    if arguments.weights and not arguments.config:
        cfg = checkpoint_config(arguments.weights, opts)
    else:
        cfg = load_config(arguments.config or DEFAULT_CONFIG, opts)
    try:
        with (
            explain_errors(AGAIN),
            connect(arguments.device or cfg.device) as process_group,
            claimed(arguments.out, is_ours) if process_group.is_main else nullcontext(),
        ):
            complaints = predict(cfg, arguments, process_group)
            return finish(arguments, complaints) if process_group.is_main else 0
    except KeyboardInterrupt:
        raise UserError(f"stopped; {AGAIN}") from None

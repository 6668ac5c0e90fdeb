"""What predict.py does: plan, segment, write; a process its share."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.origin import checkpoint_config
from prediction.drawing import OVERLAY_SIDES
from prediction.formats.table import chosen_formats, write_formats
from prediction.fitted import NAME as FITTED
from prediction.fitted import load_fitted, save_fitted
from prediction.gallery import write_gallery
from prediction.manifest import Joined, Part, Record, join, read_manifest
from prediction.outputs import FOLDERS, Kinds, Outputs
from prediction.plan import PATIENCE, WHOLE, PredictionPlan, begin, claim_share, is_current, make_plan
from prediction.predictor import AVERAGING_FACTOR, DEFAULT_CONFIG, Prediction, Predictor
from prediction.queries import Share, find_queries
from prediction.settings import contents_of, fingerprint, is_ours, read_settings, write_settings
from prediction.support import read_support, select
from util.config import Config, load_config
from util.errors import UserError, printable
from util.failures import explain_errors
from util.files import claimed
from util.image import RGB, image_size, read_image

AGAIN = "run the same command again, which goes on from there"


def plan_run(cfg: Config, arguments: argparse.Namespace, share: Share) -> tuple[PredictionPlan, dict[str, Any]]:
    """Read the supports, find the images, and see what is left to do; returns also what the results depend on."""
    out: Path = arguments.out
    support = read_support(arguments.support, arguments.boxes, arguments.mask)
    if arguments.classes:
        support = select(support, arguments.classes)
    queries = find_queries(arguments.query, [*(out / folder for folder in FOLDERS.values()), arguments.support])
    settings = fingerprint(cfg, arguments.weights, support, queries.root) | {"threshold": arguments.threshold}
    outputs = Outputs(out, queries.files, Kinds(not arguments.no_overlays, arguments.probabilities))
    is_known = is_current(out, settings, arguments.overwrite or arguments.finish)
    plan = make_plan(support, queries, share, outputs, is_known, arguments.overwrite, arguments.verify)
    return plan, settings


def announce(cfg: Config, weights: Path | None, plan: PredictionPlan) -> None:
    """Say what will be done by which method."""
    print(f"method: {cfg.arch}, " + (f"weights {weights}" if weights else "without trained weights"))
    shots = ", ".join(f"{item.name} ({len(item.images)})" for item in plan.support)
    count, share = len(plan.queries.files), plan.share
    part = f", {len(plan.left)} left in part {share.number}/{share.total}"
    print(
        f"support: {shots}; {count} images" + (part if share.total > 1 else f", {count - len(plan.left)} done before")
    )


def open_predictor(cfg: Config, weights: Path | None, device: str) -> Predictor:
    """A predictor of a trained network, or of the training-free method that the config names."""
    if weights is None:
        return Predictor.from_method(cfg.arch, cfg, device)
    return Predictor.from_checkpoint(cfg, weights, device)


def segment_files(
    predictor: Predictor, plan: PredictionPlan, threshold: float, batch: int | None
) -> Iterator[list[Record] | UserError]:
    """Segment the images that are left and write what is found: the records of each, or why it cannot be read."""
    sides = [AVERAGING_FACTOR * predictor.size, *([OVERLAY_SIDES[1]] if plan.outputs.kinds.overlays else [])]

    def read(file: str) -> tuple[RGB, tuple[int, ...], tuple[str, RGB, dict[str, object]]]:
        path = plan.queries.root / file
        size, picture = image_size(path), read_image(path, max(sides))
        return picture, size, (file, picture, contents_of(path))

    def write(rest: tuple[str, RGB, dict[str, object]], prediction: Prediction, seconds: float) -> list[Record]:
        file, picture, about = rest
        return plan.outputs.write(file, picture, prediction.at(threshold).without_unsure(), plan.values, seconds, about)

    return predictor.segment(plan.left, read, write, batch)


def predict(cfg: Config, arguments: argparse.Namespace, share: Share) -> list[str]:
    """Do what is left of this process's share; returns a line for each image that cannot be read."""
    plan, settings = plan_run(cfg, arguments, share)
    announce(cfg, arguments.weights, plan)
    if plan.left:
        predictor = open_predictor(cfg, arguments.weights, arguments.device or cfg.device)
        load_fitted(arguments.out / FITTED, predictor)
        predictor.set_support({item.name: (item.images, item.masks) for item in plan.support})
    # Weights and supports are as they should be: from here on something is written.
    with claimed(arguments.out, is_ours, PATIENCE) if share.total > 1 else nullcontext():
        begin(plan, settings, arguments.overwrite)
        if plan.left:
            save_fitted(arguments.out / FITTED, predictor)
    complaints = []
    if plan.left:
        progress = tqdm(total=len(plan.left), unit="image", disable=None)
        with Part(arguments.out, share) as part, progress as bar:
            for result in segment_files(predictor, plan, arguments.threshold, arguments.batch):
                bar.update()
                if isinstance(result, UserError):
                    complaints.append(str(result))
                else:
                    part.append(result)
    print(f"{len(plan.left) - len(complaints)} images segmented, see {printable(str(arguments.out))}")
    return sorted(complaints)


def finish(arguments: argparse.Namespace, complaints: Sequence[str] = ()) -> Joined:
    """Join the manifest's parts, count what was found, write other formats and the page."""
    out: Path = arguments.out
    joined = join(out)
    counts = {"images": len(joined.files), "found": dict(joined.found), "nothing": joined.nothing}
    write_settings(out, read_settings(out) | counts)
    write_formats(chosen_formats(arguments.format), out)
    if arguments.html:
        write_gallery(out / "index.html", out.resolve().name, read_manifest(out), complaints)
    print(summary(joined))
    return joined


def summary(joined: Joined) -> str:
    """How often each class was found."""
    found = [f"{name} in {count}" for name, count in joined.found.items()]
    return f"found of {len(joined.files)} images " + ", ".join([*found, f"nothing in {joined.nothing}"])


def finish_parts(cfg: Config, arguments: argparse.Namespace) -> list[str]:
    """Join what many processes have written; returns a line for each image that is missing."""
    plan, settings = plan_run(cfg, arguments, WHOLE)
    if not is_current(arguments.out, settings, overwrite=False):
        raise UserError(f"{arguments.out}: holds no results yet; run predict.py without --finish first")
    joined = finish(arguments)
    return [f"{file}: is missing" for file in plan.queries.files if file not in joined.files]


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit code."""
    arch = ["arch", arguments.arch] if arguments.arch else []
    opts = [*arch, *arguments.opts]
    chosen_formats(arguments.format)  # a mistake in it is said before the work
    if arguments.weights and not arguments.config:
        cfg = checkpoint_config(arguments.weights, opts)
    else:
        cfg = load_config(arguments.config or DEFAULT_CONFIG, opts)
    share = Share(*arguments.part) if arguments.part else WHOLE
    try:
        with explain_errors(AGAIN), claim_share(arguments.out, share):
            complaints = finish_parts(cfg, arguments) if arguments.finish else predict(cfg, arguments, share)
            if share == WHOLE and not arguments.finish:
                finish(arguments, complaints)
    except KeyboardInterrupt:
        raise UserError(f"stopped; {AGAIN}") from None
    if complaints:
        what = "are missing" if arguments.finish else "could not be read"
        print("\n".join([f"{len(complaints)} images {what}:", *map(printable, complaints)]), file=sys.stderr)
    return 1 if complaints else 0

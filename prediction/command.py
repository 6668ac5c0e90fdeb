"""What predict.py does: plan, segment, write; a process its share."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prediction.choice import Choice, Source, choose, find_source
from prediction.drawing import OVERLAY_SIDES
from prediction.fitted import NAME as FITTED
from prediction.fitted import save_fitted
from prediction.formats.table import check_places, chosen_formats, write_formats
from prediction.gallery import write_gallery
from prediction.manifest import Joined, Part, Record, join, read_manifest
from prediction.outputs import FOLDERS, Kinds, Outputs
from prediction.plan import PATIENCE, WHOLE, PredictionPlan, begin, claim_share, is_current, make_plan
from prediction.predictor import AVERAGING_FACTOR, Prediction
from prediction.queries import Share, find_queries
from prediction.settings import contents_of, fingerprint, is_ours, read_settings, write_settings
from prediction.stream import segment
from prediction.support import read_support, select
from prediction.tiles import Tiling, Window
from util.errors import UserError, printable
from util.failures import explain_errors
from util.files import claimed
from util.image import RGB
from util.tiff import SUFFIXES, ImageReader, parse_bands

AGAIN = "run the same command again, which goes on from there"


def plan_run(
    source: Source, arguments: argparse.Namespace, share: Share
) -> tuple[PredictionPlan, ImageReader, dict[str, Any]]:
    """Read the supports, find the images, see what is left to do; how they are read, what the results depend on."""
    out: Path = arguments.out
    support = read_support(arguments.support, arguments.boxes, arguments.mask)
    if arguments.classes:
        support = select(support, arguments.classes)
    queries = find_queries(arguments.query, [*(out / folder for folder in FOLDERS.values()), arguments.support])
    settings = fingerprint(source, support, queries.root) | {"threshold": arguments.threshold}
    check_places(chosen_formats(arguments.format), arguments.metres, (queries.root / file for file in queries.files))
    shown = {path for item in support for path in item.images}
    files = [*sorted(shown), *(queries.root / file for file in queries.files if file.lower().endswith(SUFFIXES))]
    reader = ImageReader(parse_bands(arguments.bands) if arguments.bands else (), arguments.page)
    stored = {key: value for key, value in read_settings(out).items() if key in ("bands", "page", "limits")}
    reader = reader.measured(files, stored)
    sources = {path: reader.source(path) for path in shown}
    support = [item._replace(images=[sources[path] for path in item.images]) for item in support]
    settings |= dict.fromkeys(("bands", "page", "limits")) | reader.settings()
    tile, overlap, scale = arguments.tile, arguments.overlap, arguments.scale
    settings |= {"tile": tile, "overlap": overlap if tile else None, "scale": scale}
    settings |= {"tried": not arguments.no_expectation}
    outputs = Outputs(out, queries.files, Kinds(not arguments.no_overlays, arguments.probabilities))
    is_known = not arguments.finish and is_current(out, settings, arguments.overwrite)
    plan = make_plan(support, queries, share, outputs, is_known, arguments.overwrite, arguments.verify)
    return plan, reader, settings


def announce(plan: PredictionPlan) -> None:
    """Say what is shown, and how much there is to do."""
    shots = ", ".join(f"{item.name} ({len(item.images)})" for item in plan.support)
    count, left, share = len(plan.queries.files), len(plan.left), plan.share
    part = f"{left} left in part {share.number}/{share.total}" if share.total > 1 else f"{count - left} done before"
    print(f"support: {shots}; {count} images, {part}")


def _window(reader: ImageReader, path: Path, *place: int) -> RGB:
    with reader.open(path) as raster:
        return raster.window(*place)


def segment_files(
    choice: Choice, plan: PredictionPlan, reader: ImageReader, tiling: Tiling | None, batch: int | None
) -> Iterator[list[Record] | UserError]:
    """Segment the images that are left and write what is found: the records of each, or why it cannot be read."""
    sides = [AVERAGING_FACTOR * choice.predictor.size, *([OVERLAY_SIDES[1]] if plan.outputs.kinds.overlays else [])]

    def read(file: str) -> tuple[RGB | Window, tuple[int, ...], tuple[str, RGB, dict[str, object]]]:
        path = plan.queries.root / file
        size, about = reader.size(path), contents_of(path)
        if not (tiling and tiling.cuts(size)):
            image = reader.read(path, max(sides))
            return image, size, (file, image, about)
        if not reader.is_raster(path):
            image = reader.read(path)
            return image, size, (file, image, about)
        return partial(_window, reader, path), size, (file, reader.read(path, max(sides)), about)

    def write(rest: tuple[str, RGB, dict[str, object]], prediction: Prediction, seconds: float) -> list[Record]:
        file, image, about = rest
        return plan.outputs.write(file, image, prediction.at(choice.threshold), plan.values, seconds, about)

    return segment(choice.predictor, plan.left, read, write, batch, tiling)


def predict(source: Source, arguments: argparse.Namespace, share: Share) -> list[str]:
    """Do what is left of this process's share; returns a line for each image that cannot be read."""
    plan, reader, settings = plan_run(source, arguments, share)
    announce(plan)
    tiling = Tiling(arguments.tile, arguments.overlap) if arguments.tile else None
    out: Path = arguments.out
    # One of many processes tries the supports, the others wait for its notes.
    with claimed(out, is_ours, PATIENCE) if share.total > 1 else nullcontext():
        is_known = is_current(out, settings, arguments.overwrite)
        known = read_settings(out).get("choice", {}) if is_known else {}
        choice = choose(arguments, source, plan.support, known) if plan.left or arguments.curve else None
        begin(plan, settings, arguments.overwrite)
        if choice:
            origin = f"weights {source.weights}" if source.weights else "no weights of your own"
            print(f"method: {choice.notes['method']}, {origin}, threshold {choice.threshold}")
            write_settings(out, read_settings(out) | {"choice": choice.notes})
            if not source.weights:
                save_fitted(out / FITTED, choice.predictor)
    complaints = []
    if choice:
        progress = tqdm(total=len(plan.left), unit="image", disable=None)
        with Part(out, share) as part, progress as bar:
            for result in segment_files(choice, plan, reader, tiling, arguments.batch):
                bar.update()
                if isinstance(result, UserError):
                    complaints.append(str(result))
                else:
                    part.append(result)
    print(f"{len(plan.left) - len(complaints)} images segmented, see {printable(str(arguments.out))}")
    return sorted(complaints)


def finish(out: Path, formats: str, html: bool, complaints: Sequence[str] = ()) -> Joined:
    """Join the manifest's parts, count what was found, write other formats and the page."""
    joined = join(out)
    counts = {"images": len(joined.files), "found": dict(joined.found), "nothing": joined.nothing}
    write_settings(out, read_settings(out) | counts | {"least_sure": joined.least_sure})
    write_formats(chosen_formats(formats), out)
    if html:
        write_gallery(out / "index.html", out.resolve().name, read_manifest(out), complaints)
    print(summary(joined))
    if len(joined.files) > len(joined.least_sure) > 0:
        sure = ", ".join(f"{printable(file)} ({certainty:.2f})" for file, certainty in joined.least_sure.items())
        print(f"least sure of {sure}: label these next")
    return joined


def summary(joined: Joined) -> str:
    """How often each class was found."""
    found = [f"{name} in {count}" for name, count in joined.found.items()]
    return f"found of {len(joined.files)} images " + ", ".join([*found, f"nothing in {joined.nothing}"])


def finish_parts(source: Source, arguments: argparse.Namespace) -> list[str]:
    """Join what many processes have written; returns a line for each image that is missing."""
    plan, _, settings = plan_run(source, arguments, WHOLE)
    if not is_current(arguments.out, settings, overwrite=False):
        raise UserError(f"{arguments.out}: holds no results yet; run predict.py without --finish first")
    joined = finish(arguments.out, arguments.format, arguments.html)
    return [f"{file}: is missing" for file in plan.queries.files if file not in joined.files]


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit code."""
    chosen_formats(arguments.format)  # a mistake in it is said before the work
    source = find_source(arguments.weights, arguments.arch, arguments.config, arguments.opts)
    share = Share(*arguments.part) if arguments.part else WHOLE
    try:
        with explain_errors(AGAIN), claim_share(arguments.out, share):
            complaints = finish_parts(source, arguments) if arguments.finish else predict(source, arguments, share)
            if share == WHOLE and not arguments.finish:
                finish(arguments.out, arguments.format, arguments.html, complaints)
    except KeyboardInterrupt:
        raise UserError(f"stopped; {AGAIN}") from None
    if complaints:
        what = "are missing" if arguments.finish else "could not be read"
        print("\n".join([f"{len(complaints)} images {what}:", *map(printable, complaints)]), file=sys.stderr)
    return 1 if complaints else 0

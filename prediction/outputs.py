"""Segmenting folders of images: which there are, what of them is done, and the files that are written for each."""

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.lists import class_lines
from dataset.prepare.files import is_intact_png
from model.backbone.build import imagenet_file
from prediction.manifest import NAME, Part, Record, Records, read_manifest, write_manifest
from prediction.objects import object_scores
from prediction.predictor import Found, Prediction, Predictor
from prediction.support import SupportClass
from util.config import Config
from util.errors import UserError, printable
from util.files import atomic_write, own_name, remove_temporary
from util.image import RGB, is_image, read_image
from util.schema import keys_of
from util.visualize import PAPER, Color, Tile, class_color, draw_tile, fit, fit_mask, overlay, save_image, save_index

SETTINGS = "run.json"
OVERLAY_SIDES = 320, 2000  # pixels of an overlay's longer side: smaller images are enlarged, larger ones reduced
LETTERS = 15, 50  # pixels of a legend's letters: at least so many, and this part of the longer side
JPEG_END = b"\xff\xd9"


class Queries(NamedTuple):
    """Images to segment; `files` are paths below `root`."""

    root: Path
    files: list[str]


def find_queries(patterns: Sequence[str], leave_out: Sequence[Path] = ()) -> Queries:
    """All images below folders, and all files that patterns such as `photos/*.jpg` match.

    What is hidden, in one of the folders `leave_out` or in the results of another run does not count, unless the
    pattern itself begins there. Says what else of a folder is left out. UserError for a pattern without any image.
    """
    roots: list[str] = []
    files: list[str] = []
    unwanted = {path.resolve() for path in leave_out}
    holds_results = cache(lambda folder: folder in unwanted or is_ours(folder / SETTINGS))
    for pattern in patterns:
        root, matched = _matches(pattern)
        shown = [path for path in matched if not any(part.startswith(".") for part in path.relative_to(root).parts)]
        above = {root.resolve(), *root.resolve().parents}
        wanted = [path for path in shown if not any(map(holds_results, set(path.resolve().parents) - above))]
        found = [path for path in wanted if is_image(path)] if os.path.isdir(pattern) else wanted
        if others := sorted({*shown} - {*found} - {path for path in wanted if is_ours(path)}):
            print(f"{pattern}: {len(others)} files are no images, or results; the first is {printable(str(others[0]))}")
        if not found:
            raise UserError(f"{pattern}: no images; give a folder, or a pattern in quotes such as 'photos/*.jpg'")
        roots.append(os.path.abspath(root))
        files += [os.path.abspath(path) for path in found]
    common = Path(os.path.commonpath(roots))
    return Queries(common, sorted({os.path.relpath(file, common) for file in files}))


def _matches(pattern: str) -> tuple[Path, list[Path]]:
    """The folder that a pattern begins with, and the files it means; the part of it that exists has no wildcards."""
    if os.path.isdir(pattern):
        return Path(pattern), [path for path in Path(pattern).rglob("*") if path.is_file()]
    if os.path.isfile(pattern):
        return Path(pattern).parent, [Path(pattern)]
    root, parts = Path(), list(Path(pattern).parts)
    while len(parts) > 1 and (root / parts[0]).is_dir():
        root /= parts.pop(0)
    rest = os.path.join(*parts) + "/" * pattern.endswith("/")
    return root, [root / name for name in glob.glob(rest, root_dir=root, recursive=True) if (root / name).is_file()]


def output_names(files: Iterable[str]) -> dict[str, str]:
    """What each file's outputs are called: its path without suffix, or with it where that would mean two files.

    Whatever the file is called, that is a path below a folder; where two would still meet, a digest tells them apart.
    """
    wanted = {file: str(Path(file).with_suffix("")) for file in files}
    count = Counter(wanted.values())
    names = {file: own_name(name if count[name] == 1 and name not in wanted else file) for file, name in wanted.items()}
    count = Counter(names.values())
    digests = {
        file: hashlib.sha256(os.fsencode(file)).hexdigest()[:8] for file, name in names.items() if count[name] > 1
    }
    return {file: f"{name}_{digests[file]}" if file in digests else name for file, name in names.items()}


class Outputs:
    """The folder that predictions are written to."""

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self.folder, self.names = folder, names

    def mask(self, file: str) -> str:
        """The index PNG of a file, below the folder."""
        return f"masks/{self.names[file]}.png"

    def overlay(self, file: str) -> str:
        """The image of a file with what was found drawn on it, below the folder."""
        return f"overlays/{self.names[file]}.jpg"

    def is_done(self, file: str, records: Records, digest: str | None) -> bool:
        """Whether a file of that content is in the manifest and its outputs are there and whole."""
        known = records.get(file, [{}])[0]
        if (known.get("mask"), known.get("overlay")) != (self.mask(file), self.overlay(file)):
            return False
        if digest is None or known.get("digest") != digest:
            return False
        return is_intact_png(self.folder / self.mask(file)) and _is_whole_jpeg(self.folder / self.overlay(file))

    def write(
        self,
        file: str,
        image: RGB,
        prediction: Prediction,
        values: Mapping[str, int],
        seconds: float,
        digest: str | None = None,
    ) -> list[Record]:
        """Write mask and overlay of an image and return its records; `values` are those of the classes in the mask."""
        table = np.array([0, *(values[name] for name in prediction.names)], np.uint8)
        mask, found = table[prediction.mask], prediction.found()
        entries = [(class_color(values[item.name]), f"{item.name} {item.score:.2f}") for item in found]
        save_index(self.folder / self.mask(file), mask)
        save_image(self.folder / self.overlay(file), draw_overlay(image, mask, entries))
        shared = {
            **{"seconds": round(seconds, 4), "found": len(found)},
            **{"mask": self.mask(file), "overlay": self.overlay(file)},
            **({"digest": digest} if digest else {}),
        }
        nothing = {"file": file, "class": None, "value": None, "area": 0, "score": 0.0, "box": None, **shared}
        scores = object_scores(prediction.mask, prediction.class_probabilities)
        return [
            {**_record(file, item, values, scores[prediction.names.index(item.name) + 1]), **shared} for item in found
        ] or [nothing]


def _record(file: str, item: Found, values: Mapping[str, int], scores: Sequence[float]) -> Record:
    known = {"file": file, "class": item.name, "value": values[item.name], "area": item.area}
    rounded = [round(score, 4) for score in scores]
    return {**known, "score": round(item.score, 4), "scores": rounded, "box": list(item.box)}


def _is_whole_jpeg(path: Path) -> bool:
    return path.is_file() and path.read_bytes().endswith(JPEG_END)


def overlay_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which an image of that size is drawn, in pixels."""
    side = min(max(height, width, OVERLAY_SIDES[0]), OVERLAY_SIDES[1])
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_overlay(image: RGB, mask: NDArray[np.uint8], entries: Sequence[tuple[Color, str]]) -> RGB:
    """An image with its mask filled translucently and outlined, and below it a legend."""
    shown = fit(image, *overlay_size(*mask.shape))
    drawn = overlay(shown, fit_mask(mask, shown))
    letters = max(LETTERS[0], max(shown.shape) // LETTERS[1])
    return np.asarray(draw_tile(Tile("", drawn, entries or [(PAPER, "nothing found")]), letters))


def fingerprint(cfg: Config, weights: Path | None, support: Sequence[SupportClass], root: Path) -> dict[str, Any]:
    """What predictions depend on: contents of weights and supports, the network; and where the images are.

    Raises UserError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for item in support:
        digest.update(f"{item.name}\0{item.value}\0".encode())
        for image, mask in zip(item.images, item.masks, strict=True):
            digest.update(_digest(image).encode())
            digest.update(repr(mask).encode() if isinstance(mask, list) else mask.tobytes())
    used = weights or next((path for path in [imagenet_file(cfg)] if path.is_file()), None)
    contents = {"query": str(root), "weights": used and _digest(used), "support": digest.hexdigest()}
    contents |= {} if weights else {"arch": cfg.arch}
    return {**contents, **{key: getattr(cfg, key) for key in keys_of("network")}}


def digest_of(path: Path) -> str | None:
    """SHA-256 of what a file holds; None where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _digest(path: Path) -> str:
    if (digest := digest_of(path)) is None:
        raise UserError(f"{path}: cannot be read; check the path and its rights")
    return digest


@dataclass(frozen=True)
class PredictionPlan:
    """What a run has to do, the same in all of its processes."""

    support: Sequence[SupportClass]
    queries: Queries
    outputs: Outputs
    left: Sequence[str]  # of the files of the queries
    settings: Mapping[str, Any]  # on which the results depend
    records: Records  # of earlier runs that are kept
    stale: Mapping[str, Record]  # files of which another mask or overlay may lie there, and its record

    @property
    def values(self) -> dict[str, int]:
        """By which masks mark each class."""
        return {item.name: item.value for item in self.support}


def is_ours(path: Path) -> bool:
    """Whether a file says that the folder it is in holds predictions."""
    if path.name != SETTINGS:
        return False
    settings = _read_settings(path)
    return isinstance(settings, dict) and {"query", "weights", "support"} <= settings.keys()


def make_plan(
    folder: Path, support: Sequence[SupportClass], queries: Queries, settings: Mapping[str, Any], overwrite: bool
) -> PredictionPlan:
    """See which files are left to do, writing nothing.

    With `overwrite` all files are. Otherwise those that an earlier run of the same settings has done are kept, as long
    as they have not changed, and UserError is raised if the folder holds the results of other settings. What was made
    of images that are called otherwise now is stale.
    """
    path = folder / SETTINGS
    same = not path.exists() or _read_settings(path) == settings
    if not same and not overwrite:
        raise UserError(
            f"{folder}: holds what other weights, settings, supports or query folders gave; "
            "give another --out, or --overwrite"
        )
    known = read_manifest(folder) if same else {}
    gone = {file for file in known.keys() - set(queries.files) if not (queries.root / file).exists()}
    digests = {file: digest_of(queries.root / file) for file in queries.files if gone or file in known}
    renamed = {file for file in gone if known[file][0].get("digest", "") in digests.values()}
    records = {file: group for file, group in known.items() if file not in renamed and all(map(_is_whole, group))}
    if overwrite:
        records = {file: records[file] for file in records.keys() - set(queries.files)}
    outputs = Outputs(folder, output_names({*queries.files, *records}))
    stale = {file: known[file][0] for file in renamed | (known.keys() & outputs.names.keys())}
    left = [file for file in queries.files if not outputs.is_done(file, records, digests.get(file))]
    return PredictionPlan(support, queries, outputs, left, settings, records, stale)


def begin(plan: PredictionPlan) -> None:
    """Write down what a run is about, and remove what is stale, before the first image; one process calls this."""
    folder = plan.outputs.folder
    if _read_settings(folder / SETTINGS) != plan.settings:
        atomic_write(folder / SETTINGS, json.dumps(plan.settings, indent=1) + "\n")
    _remove_stale(plan.outputs, plan.stale)
    write_manifest(folder, plan.records)
    atomic_write(folder / "classes.txt", class_lines({item.value: item.name for item in plan.support}))


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _is_whole(record: Record) -> bool:
    return record.keys() >= {"class", "value", "area", "score", "mask", "overlay"}


def _remove_stale(outputs: Outputs, known: Mapping[str, Record]) -> None:
    """Remove outputs that are now called otherwise, and what a killed run has left half-written."""
    current = {name(file) for file in outputs.names for name in (outputs.mask, outputs.overlay)}
    for record in known.values():
        for name in (record.get("mask", ""), record.get("overlay", "")):
            if name not in current and name == own_name(name) and name.startswith(("masks/", "overlays/")):
                (outputs.folder / name).unlink(missing_ok=True)
    for path in [*outputs.folder.glob("masks/**/.*.tmp"), *outputs.folder.glob("overlays/**/.*.tmp")]:
        name = re.fullmatch(r"\.(.+)\.\d+\.tmp", path.name)
        if name and str(path.with_name(name[1]).relative_to(outputs.folder)) in current:
            path.unlink(missing_ok=True)
    for name in (SETTINGS, NAME, "classes.txt", "index.html"):
        remove_temporary(outputs.folder, name)


def segment_files(
    predictor: Predictor, plan: PredictionPlan, files: Sequence[str], part: Part, batch: int
) -> Iterator[tuple[int, list[str]]]:
    """Segment some of the images that are left, `batch` at a time, and write what is found.

    Yields after each batch the number of its images and a line for each that cannot be read.
    """
    for start in range(0, len(files), batch):
        before = perf_counter()
        images, digests, complaints = {}, {}, []
        for file in files[start : start + batch]:
            digests[file] = digest_of(plan.queries.root / file)
            try:
                images[file] = read_image(plan.queries.root / file)
            except UserError as error:
                complaints.append(str(error))
        predictions = predictor.predict_batch(list(images.values())) if images else []
        seconds = (perf_counter() - before) / max(1, len(images))
        for (file, image), prediction in zip(images.items(), predictions, strict=True):
            part.append(plan.outputs.write(file, image, prediction, plan.values, seconds, digests[file]))
        yield len(images) + len(complaints), complaints

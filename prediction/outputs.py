"""The files that are written for every image, and what they are called."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.prepare.files import is_intact_png
from prediction.drawing import draw_overlay
from prediction.formats.images import is_as_told, read_mask
from prediction.manifest import Record
from prediction.objects import object_scores
from prediction.predictor import Found, Prediction
from util.errors import UserError
from util.files import atomic_write, own_name
from util.image import RGB
from util.visualize import class_color, save_image, save_index

JPEG_END = b"\xff\xd9"
FOLDERS = {"mask": "masks", "overlay": "overlays", "probability": "probabilities"}  # by the record's entry
NEEDED = {"class", "value", "area", "score", "mask", "overlay"}


@dataclass(frozen=True)
class Kinds:
    """What is written beside masks."""

    overlays: bool = True
    probabilities: bool = False


class Outputs:
    """The folder that predictions of some files are written to.

    Outputs are called like their file without its suffix, or with it where that would mean two files. Whatever the
    file is called, that is a path below a folder; where two would still meet, a digest tells them apart.
    """

    def __init__(self, folder: Path, files: Sequence[str], kinds: Kinds | None = None) -> None:
        self.folder, self.kinds = folder, kinds or Kinds()
        stems = _hashes((own_name(os.path.splitext(file)[0]) for file in files), len(files))
        meets = _repeated(stems) | np.isin(stems, _hashes(files, len(files)))
        self.whole = {files[number] for number in np.flatnonzero(meets).tolist()}  # called by their whole names
        names = _hashes(map(own_name, self.whole), len(self.whole))
        repeated = _repeated(names) | np.isin(names, stems[~meets])
        self.with_digest = {file for file, again in zip(self.whole, repeated, strict=True) if again}

    def name(self, file: str) -> str:
        """What a file's outputs are called, without suffix."""
        if file not in self.whole:
            return own_name(os.path.splitext(file)[0])
        digest = f"_{sha256(os.fsencode(file)).hexdigest()[:8]}" if file in self.with_digest else ""
        return own_name(file) + digest

    def paths(self, file: str) -> Record:
        """The paths below the folder that belong into a file's record: its mask, and what else is asked for."""
        name = self.name(file)
        return {
            "mask": f"{FOLDERS['mask']}/{name}.png",
            "overlay": f"{FOLDERS['overlay']}/{name}.jpg" if self.kinds.overlays else "",
            **({"probability": f"{FOLDERS['probability']}/{name}.png"} if self.kinds.probabilities else {}),
        }

    def is_whole(self, records: Sequence[Record]) -> bool:
        """Whether the outputs of an image are there and intact, and its mask what the records tell, by reading them."""
        mask, overlay, probability = (records[0].get(kind, "") for kind in ("mask", "overlay", "probability"))
        images = [mask, *([probability] if probability else [])]
        with suppress(UserError):  # of a PNG that is no index image
            return (
                all(is_intact_png(self.folder / path) for path in images)
                and is_as_told(read_mask(self.folder / mask), records)
                and (not overlay or _is_whole_jpeg(self.folder / overlay))
            )
        return False

    def write(
        self,
        file: str,
        image: RGB,
        prediction: Prediction,
        values: Mapping[str, int],
        seconds: float,
        about: Mapping[str, object] | None = None,
    ) -> list[Record]:
        """Write what belongs to an image, given of its own size or reduced, and return its records.

        `values` are those of the classes in the mask; what is known `about` the image's file is noted with them.
        """
        table = np.array([0, *(values[name] for name in prediction.names)], np.uint8)
        mask = prediction.mask if np.array_equal(table, np.arange(len(table))) else table[prediction.mask]
        found, paths = prediction.found(), self.paths(file)
        save_index(self.folder / paths["mask"], mask)
        if paths["overlay"]:
            entries = [(class_color(values[item.name]), f"{item.name} {item.score:.2f}") for item in found]
            save_image(self.folder / paths["overlay"], draw_overlay(image, mask, entries))
        if "probability" in paths:
            save_probability(self.folder / paths["probability"], prediction.probability)
        shared = {
            **{"seconds": round(seconds, 4), "found": len(found), "certainty": round(prediction.certainty, 4)},
            **{"size": [*mask.shape], **paths, **(about or {})},
        }
        nothing = {"file": file, "class": None, "value": None, "area": 0, "score": 0.0, "box": None, **shared}
        scores = object_scores(prediction.mask, prediction.class_probabilities)
        return [
            {**_record(file, item, values, scores[prediction.names.index(item.name) + 1]), **shared} for item in found
        ] or [nothing]


def is_done(paths: Mapping[str, str], record: Record) -> bool:
    """Whether a record says that all is written that is asked for, at these paths."""
    return record.keys() >= NEEDED and all(record.get(kind) == path for kind, path in paths.items() if path)


def save_probability(path: Path, probability: NDArray[np.float32]) -> None:
    """Write a probability (h, w) as a grey PNG of 16 bits, 65535 for 1."""
    values = np.empty(probability.shape, np.uint16)
    for row, of_row in zip(values, probability, strict=True):  # a large one is float16, whose numbers end at 65504
        row[:] = np.rint(of_row.astype(np.float32).clip(0, 1) * 65535)
    atomic_write(path, cv2.imencode(".png", values)[1].tobytes())


def _record(file: str, item: Found, values: Mapping[str, int], scores: Sequence[float]) -> Record:
    known = {"file": file, "class": item.name, "value": values[item.name], "area": item.area}
    rounded = [round(score, 4) for score in scores]
    return {**known, "score": round(item.score, 4), "scores": rounded, "box": list(item.box)}


def _is_whole_jpeg(path: Path) -> bool:
    return path.is_file() and path.read_bytes().endswith(JPEG_END)


def _hashes(names: Iterable[str], count: int) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names), np.int64, count)


def _repeated(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are there more than once."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(counts[place] > 1)

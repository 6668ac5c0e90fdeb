"""What a run has found, image by image, from its manifest and masks."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from prediction.manifest import NAME, Record
from prediction.objects import MaskObject, find_objects
from util.errors import UserError, first_line
from util.tiff import Georeference, read_georeference

ANEW = "run again with --verify, which writes it anew"


class Segment(NamedTuple):
    """An object with the name of its class."""

    name: str
    score: float  # mean probability over the object, or over all of its class where a run has not told them apart
    object: MaskObject


class SegmentedImage(NamedTuple):
    """An image and the objects in it."""

    file: str  # below the folder of the queries
    path: Path  # of that file
    name: str  # of its outputs, a path without suffix
    mask: NDArray[np.uint8]  # (h, w): 0 background, else the value of a class
    segments: list[Segment]
    place: Georeference | None  # where on the ground it lies, if that is known

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.mask.shape


def segmented_images(folder: Path, root: Path) -> Iterator[SegmentedImage]:
    """The images of the manifest in a folder of results, one at a time; `root` is the folder of the queries.

    UserError for a mask that is missing or damaged, or has changed since.
    """
    with (folder / NAME).open("rb") as lines:
        for file, records in groupby(map(json.loads, lines), lambda record: str(record["file"])):
            yield _image(folder, root, file, list(records))


def _image(folder: Path, root: Path, file: str, records: list[Record]) -> SegmentedImage:
    path = folder / records[0]["mask"]
    mask = read_mask(path)
    height, width = mask.shape
    if (size := records[0].get("size", [height, width])) != [height, width]:
        raise UserError(f"{path}: is {width}x{height}, and the manifest says {size[1]}x{size[0]}; {ANEW}")
    known = {record["value"]: record for record in records if record["class"] is not None}
    scores = {value: iter(record.get("scores", ())) for value, record in known.items()}
    segments = []
    for item in find_objects(mask):
        if item.value not in known:
            raise UserError(f"{path}: holds the value {item.value}, which the manifest does not; {ANEW}")
        record = known[item.value]
        segments.append(Segment(record["class"], next(scores[item.value], record["score"]), item))
    name = str(Path(records[0]["mask"]).relative_to("masks").with_suffix(""))
    return SegmentedImage(file, root / file, name, mask, segments, read_georeference(root / file))


def read_mask(path: Path) -> NDArray[np.uint8]:
    """An index mask (h, w) that a run has written, of any size; UserError if it is missing or damaged."""
    try:
        with path.open("rb") as file, PngImageFile(file) as image:  # `Image.open` takes a large one for an attack
            if image.mode not in ("P", "L"):
                raise ValueError(f"its mode is {image.mode}, not that of an index image")
            return np.array(image, np.uint8)
    except Exception as error:  # damaged files make Pillow fail in any way there is
        raise UserError(f"{path}: no readable mask ({first_line(error)}); {ANEW}") from None


def is_as_told(mask: NDArray[np.uint8], records: Sequence[Record]) -> bool:
    """Whether a mask has the size that an image's records tell, if they do, and of every class the area."""
    counts = np.sum([np.bincount(row, minlength=256) for row in mask], 0).tolist()
    areas = [(value, count) for value, count in enumerate(counts) if value and count]
    told = [(record.get("value"), record.get("area")) for record in records if record.get("class") is not None]
    is_of_size = records[0].get("size", [*mask.shape]) == [*mask.shape]
    return is_of_size and len(told) == len(areas) and all(pair in told for pair in areas)

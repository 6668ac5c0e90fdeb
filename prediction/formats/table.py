"""The formats by name, and writing them: from the manifest and the masks, once all images are done."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from dataset.lists import read_class_file
from prediction.formats.coco import Coco
from prediction.formats.geojson import GeoJson
from prediction.formats.geotiff import GeoTiff
from prediction.formats.images import segmented_images
from prediction.formats.labelme import LabelMe
from prediction.formats.objects_csv import ObjectsCsv
from prediction.formats.writer import FormatWriter
from prediction.formats.yolo import Yolo
from prediction.settings import SETTINGS
from util.errors import UserError
from util.tiff import read_georeference

FORMATS: Mapping[str, type[FormatWriter]] = {
    "coco": Coco,
    "labelme": LabelMe,
    "yolo": Yolo,
    "geojson": GeoJson,
    "geotiff": GeoTiff,
    "csv": ObjectsCsv,
}


def chosen_formats(text: str) -> list[str]:
    """The formats that a word such as `coco,csv` names; UserError for one that is not known or cannot be written."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in FORMATS]:
        raise UserError(f"--format {unknown[0]}: no such format; there are {', '.join(FORMATS)}")
    if (needy := [name for name in names if name.startswith("geo")]) and find_spec("rasterio") is None:
        raise UserError(f"--format {needy[0]}: needs rasterio; install it by pip install 'hmnet[geo]'")
    return names


def check_places(names: Sequence[str], metres: bool, files: Iterable[Path]) -> None:
    """UserError for the first of the images that does not say where it lies where GeoTIFF or metres are asked for."""
    for path in files if metres or "geotiff" in names else ():
        place = read_georeference(path)
        asked = "--metres" if metres else "--format geotiff"
        if place is None:
            raise UserError(f"{path}: has no coordinate reference system; leave out {asked}, or give it one")
        if metres and place.metres is None:
            raise UserError(f"{path}: its coordinates are degrees; reproject it to metres, or leave out --metres")


def write_formats(names: Sequence[str], folder: Path) -> None:
    """Write each format into a folder of finished results.

    In memory is one image at a time. What an earlier run has written stays until all is done. UserError for a mask that
    is missing or has changed.
    """
    classes = read_class_file(folder / "classes.txt")
    root = Path(json.loads((folder / SETTINGS).read_bytes())["query"])
    with ExitStack() as stack:
        writers = [stack.enter_context(FORMATS[name](folder, classes)) for name in names]
        for image in segmented_images(folder, root) if writers else ():
            for writer in writers:
                writer.add(image)

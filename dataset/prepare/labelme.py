"""LabelMe's annotations: one JSON file per image, shapes with labels."""

import base64
import binascii
import glob
import io
import json
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dataset.prepare.files import Label
from dataset.prepare.labels import Shape, paint
from dataset.prepare.picture import Collection, is_image
from util.errors import UserError
from util.pixels import IGNORE

# Labels by LabelMe's convention that are no classes, and the value painted for them.
SPECIAL_LABELS = {"__ignore__": IGNORE, "_background_": 0}
AREAS = ("polygon", "rectangle", "circle", "mask")


@dataclass(frozen=True)
class LabelMePicture:
    """A picture annotated by LabelMe; `classes` gives the value of a label."""

    name: str
    image: Path
    file: Path
    classes: dict[str, int]

    def label(self) -> Label:
        content = _read(self.file)
        try:
            height, width = int(content["imageHeight"]), int(content["imageWidth"])
            shapes = [
                (self.classes[shape["label"]], _draw(shape, height, width))
                for shape in content["shapes"]
                if _kind(shape) in AREAS
            ]
        except (KeyError, TypeError, ValueError, IndexError, OSError, binascii.Error) as error:
            raise UserError(f"{self.file} is damaged: {type(error).__name__}: {error}") from None
        return _ignored_below(height, width, shapes)


def _ignored_below(height: int, width: int, shapes: list[Shape]) -> Label:
    """Paint the shapes; what is to be ignored only where no class is."""
    label = paint(height, width, [shape for shape in shapes if shape[0] != IGNORE])
    for value, mask in shapes:
        if value == IGNORE:
            label[mask & (label == 0)] = IGNORE
    return label


def read_labelme(root: Path, files: list[Path], images: Path | None) -> Collection:
    """Read LabelMe files below `root`; the classes are the labels of shapes that have an area, in alphabetical order.

    Images are looked for where the file says, then beside it by name, or in `images`. UserError names what is missing.
    """
    labels: set[str] = set()
    without_area = 0
    for file in files:
        for shape in _shapes(file):
            without_area += _kind(shape) not in AREAS
            labels |= {shape["label"]} if _kind(shape) in AREAS else set()
    if without_area:
        print(f"{without_area} points and lines left out: only {', '.join(AREAS)} shapes have an area")
    names = sorted(labels - set(SPECIAL_LABELS))
    if not names:
        raise UserError(f"{root}: no LabelMe file has a {' or '.join(AREAS)} shape")
    classes = {name: number for number, name in enumerate(names, start=1)} | SPECIAL_LABELS
    pictures = [
        LabelMePicture(str(file.relative_to(root).with_suffix("")), _image(file, images), file, classes)
        for file in files
    ]
    return Collection(names, list(pictures))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except ValueError:
        raise UserError(f"{file} is no JSON file; correct it or remove it") from None
    return dict(content)


def _shapes(file: Path) -> list[dict[str, Any]]:
    shapes = _read(file).get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) and "label" in shape for shape in shapes):
        raise UserError(f"{file} is damaged: its shapes are not a list of labelled shapes")
    return shapes


def _kind(shape: dict[str, Any]) -> str:
    return str(shape.get("shape_type") or "polygon")  # old files have polygons only and do not say so


def _image(file: Path, images: Path | None) -> Path:
    folder = images or file.parent
    stated = str(_read(file).get("imagePath") or "")
    name = PureWindowsPath(stated)  # understands both kinds of separators
    for path in (folder / name.as_posix(), folder / name.name):
        if stated and path.is_file():
            return path
    found = next((path for path in sorted(folder.glob(f"{glob.escape(file.stem)}.*")) if is_image(path)), None)
    if found is None:
        raise UserError(f"{file} names the image {stated}, which is not in {folder}; give the folder with --images DIR")
    return found


def _draw(shape: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (height, width) of a shape."""
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if _kind(shape) == "mask":
        return _paste(shape["mask"], points, height, width)
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    if _kind(shape) == "polygon":
        if len(points) >= 3:
            draw.polygon(points, fill=1, outline=1)
    elif _kind(shape) == "rectangle":
        (x0, y0), (x1, y1) = points
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
    else:
        (x0, y0), (x1, y1) = points  # centre, and a point on the circle
        radius = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), fill=1)
    return np.array(image, dtype=np.bool_)


def _paste(encoded: str, points: list[tuple[float, float]], height: int, width: int) -> NDArray[np.bool_]:
    """A mask packed as a PNG, whose upper left corner is the first of the points."""
    patch = np.array(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L")) > 0  # (h, w)
    left, top = (round(coordinate) for coordinate in points[0])
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch[: height - top, : width - left]
    return mask

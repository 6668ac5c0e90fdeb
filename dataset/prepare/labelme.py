"""LabelMe's annotations: one JSON file per image, shapes with labels."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dataset.prepare.annotations import AREAS, FREE_FORMS, LabelMeFile, LabelMeShape, paint, parse
from dataset.prepare.files import run_all
from dataset.prepare.image import (
    AnnotatedImage,
    Collection,
    Size,
    check_classes,
    composed,
    files_below,
    find_image,
    tell_left_out,
)
from util.errors import UserError
from util.image import is_image
from util.mask import Label
from util.pixels import IGNORE

# Labels by LabelMe's convention that are no classes, and the value painted for them.
SPECIAL_LABELS = {"__ignore__": IGNORE, "_background_": 0}


def read_labelme(root: Path, files: Sequence[Path], images: Path | None, workers: int = 1) -> Collection:
    """Read LabelMe files below `root`; the classes are the labels of shapes that have an area, in alphabetical order.

    Images are looked for beside the file by its own name, then where it says, or in `images`. UserError names what is
    missing, and the file and key that are no LabelMe's.
    """
    parse_file = partial(parse, LabelMeFile, kind="LabelMe")
    contents = run_all(parse_file, files, "LabelMe files", workers, "LabelMe files")
    shapes = [shape for content in contents for shape in content.shapes]
    names = sorted({shape.label for shape in shapes if shape.shape_type in AREAS} - set(SPECIAL_LABELS))
    if without_area := sum(shape.shape_type not in AREAS for shape in shapes):
        print(f"{without_area} points and lines left out: only {', '.join(AREAS)} shapes have an area")
    if not names:
        raise UserError(f"{root}: no LabelMe file has a {' or '.join(AREAS)} shape")
    check_classes(len(names), root)
    classes = {name: number for number, name in enumerate(names, start=1)} | SPECIAL_LABELS
    items: list[AnnotatedImage] = []
    annotated_by: dict[Path, Path] = {}
    for file, content in zip(files, contents, strict=True):
        image = _image(file, content.imagePath or "", images)
        if (other := annotated_by.setdefault(image.resolve(), file)) != file:
            raise UserError(f"{file}: {image} is annotated by {other} too; remove one")
        height, width = content.imageHeight, content.imageWidth
        size = (height, width) if height and width else None
        draw = partial(_draw, file, content.shapes, classes)
        items.append(AnnotatedImage(str(file.relative_to(root).with_suffix("")), image, size, draw))
    others = [path for path in files_below(images or root) if path.resolve() not in annotated_by]
    tell_left_out(others, "an annotation")
    return Collection(names, items)


def _image(file: Path, stated: str, images: Path | None) -> Path:
    """The image of a file's own name, since names in files grow stale; else the one that it states."""
    folder = images or file.parent
    stem = composed(file.stem)
    same = [path for path in sorted(folder.iterdir()) if composed(path.stem).casefold() == stem.casefold()]
    same = [path for path in same if is_image(path)]
    own = [path for path in same if composed(path.stem) == stem] or same
    found = find_image(stated, [folder])
    if found in own:
        return found
    if len(own) > 1:
        raise UserError(f"{file}: its image may be {own[0].name} or {own[1].name}; remove or rename one")
    if own:
        if found is not None and not found.samefile(own[0]):
            warnings.warn(f"{file}: names the image {stated}; {own[0].name}, of its own name, is taken", stacklevel=2)
        return own[0]
    if found is None:
        raise UserError(f"{file} names the image {stated}, which is not in {folder}; give the folder with --images DIR")
    return found


def _draw(file: Path, shapes: Sequence[LabelMeShape], classes: Mapping[str, int], size: Size) -> Label:
    """Paint the shapes; what is to be ignored only where no class is."""
    drawn = []
    for number, shape in enumerate(shapes):
        if shape.shape_type in AREAS:
            try:
                drawn.append((classes[shape.label], _draw_shape(shape, size)))
            except Exception as error:  # whatever Pillow makes of a packed mask
                raise UserError(f"{file}: shapes[{number}]: cannot be drawn: {error}") from None
    label = paint(*size, [shape for shape in drawn if shape[0] != IGNORE])
    for value, mask in drawn:
        if value == IGNORE:
            label[mask & (label == 0)] = IGNORE
    return label


def _draw_shape(shape: LabelMeShape, size: Size) -> NDArray[np.bool_]:
    """The pixels (height, width) of a shape."""
    image = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(image)
    points = shape.points
    if shape.shape_type == "mask":  # packed as a PNG, whose upper left corner is the first of the points
        corner = round(points[0][0]), round(points[0][1])
        with Image.open(io.BytesIO(base64.b64decode(shape.mask or "")), formats=["PNG"]) as packed:
            image.paste(Image.fromarray(np.asarray(packed.convert("L")) > 0), corner)
    elif shape.shape_type in FREE_FORMS or len(points) > 2:
        draw.polygon(points, fill=1, outline=1)
    elif shape.shape_type == "rectangle":
        (x0, y0), (x1, y1) = points
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
    else:
        (x0, y0), (x1, y1) = points  # centre, and a point on the circle
        radius = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), fill=1)
    return np.array(image, dtype=np.bool_)

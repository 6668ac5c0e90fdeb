"""Annotations in JSON as checked data: the forms that COCO's and LabelMe's files may have."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    model_validator,
)

from util.errors import UserError, printable
from util.mask import Label

LETTERS = 100  # of a class's name
FAR = 10  # times an image's size at which no corner lies
FREE_FORMS = ("polygon", "oriented_rectangle", "rotation", "rotated_rectangle", "quadrilateral")  # drawn as polygons
AREAS = (*FREE_FORMS, "rectangle", "circle", "mask")
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def class_name(text: str) -> str:
    """The name of a class without blanks around it; ValueError for one that cannot be written into a line or drawn."""
    name = text.strip()
    if not name or printable(name) != name or len(name) > LETTERS:
        raise ValueError(f"{text[:LETTERS]!r} is no name for a class: 1 to {LETTERS} letters in one line")
    return name


def _as_polygons(segmentation: Any) -> Any:
    """Polygons as lists of numbers, which some write as lists of points; some write a single one as it is."""
    if not isinstance(segmentation, list) or not segmentation:
        return [] if segmentation is None else segmentation
    points = len(segmentation) > 2 and all(isinstance(part, list) and len(part) == 2 for part in segmentation)
    is_single = points or all(isinstance(part, int | float) for part in segmentation)
    polygons = [segmentation] if is_single else list(segmentation)
    for number, polygon in enumerate(polygons):
        if isinstance(polygon, list) and polygon and all(isinstance(point, list) for point in polygon):
            polygons[number] = [value for point in polygon for value in point]
    return polygons


def _in_pairs(polygon: list[float]) -> list[float]:
    if len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} numbers; should be x, y, x, y, ...")
    return polygon


def _as_number(value: Any) -> Any:
    """An id "7" or 7.0 is 7; but "07" is text, and another id."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", value) else value


ClassName = Annotated[str, AfterValidator(class_name)]
Id = Annotated[StrictInt | StrictStr, BeforeValidator(_as_number)]
Polygons = Annotated[list[Annotated[list[float], AfterValidator(_in_pairs)]], BeforeValidator(_as_polygons)]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


class RunLengths(_Checked):
    """A mask as the lengths of its runs, column by column, beginning with the background; packed as text or not."""

    size: tuple[NonNegativeInt, NonNegativeInt]  # height, width
    counts: list[NonNegativeInt] | str

    @model_validator(mode="after")
    def _whole(self) -> "RunLengths":
        runs = unpack_runs(self.counts) if isinstance(self.counts, str) else self.counts
        if min(runs, default=0) < 0 or sum(runs) != self.size[0] * self.size[1]:
            raise ValueError(f"run lengths of {sum(runs)} pixels for {self.size[1]}x{self.size[0]}")
        return self

    def decode(self) -> NDArray[np.bool_]:
        """The mask (h, w)."""
        runs = self.model_dump()
        packed = runs if isinstance(self.counts, str) else coco_mask.frPyObjects(runs, *self.size)
        return np.asarray(coco_mask.decode(packed), dtype=np.bool_)


Segmentation = list[list[float]] | RunLengths  # polygons x, y, x, y, ... or run lengths


class CocoImage(_Checked):
    """An image; `file_name` is what the export calls it."""

    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: PositiveInt
    height: PositiveInt


class CocoCategory(_Checked):
    """A class."""

    id: Id
    name: ClassName


class CocoAnnotation(_Checked):
    """One object in one image; some have a box or keypoints only."""

    image_id: Id
    category_id: Id
    segmentation: Annotated[
        Annotated[Polygons, Tag("as polygons")] | Annotated[RunLengths, Tag("as run lengths")],
        Discriminator(lambda shape: f"as {'run lengths' if isinstance(shape, dict | RunLengths) else 'polygons'}"),
    ] = []


class CocoFile(_Checked):
    """A COCO file, whose annotations name images and categories that it has."""

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]

    @model_validator(mode="after")
    def _consistent(self) -> "CocoFile":
        for table, entries in (("images", self.images), ("categories", self.categories)):
            for key in ("id", "file_name" if table == "images" else "name"):
                values = [getattr(entry, key) for entry in entries]
                last = {value: number for number, value in enumerate(values)}
                for number, value in enumerate(values):
                    if last[value] != number:
                        raise ValueError(
                            f"{table}[{last[value]}].{key}: {value!r} is there twice; rename or remove one"
                        )
        images = {image.id: image for image in self.images}
        categories = {category.id for category in self.categories}
        for number, item in enumerate(self.annotations):
            where = f"annotations[{number}]"
            if item.image_id not in images or item.category_id not in categories:
                key = "category_id" if item.image_id in images else "image_id"
                raise ValueError(f"{where}.{key}: {getattr(item, key)!r} is not in the file")
            image = images[item.image_id]
            if problem := _misfit(item.segmentation, image.height, image.width):
                raise ValueError(f"{where}.segmentation: {problem}, in an image of {image.width}x{image.height}")
        shapes = [item.segmentation for item in self.annotations if not isinstance(item.segmentation, RunLengths)]
        corners = [value for polygons in shapes for polygon in polygons for value in polygon]
        if len(corners) > 2 and max(map(abs, corners)) <= 1:
            raise ValueError("annotations[0].segmentation: all corners are from 0 to 1; give them in pixels")
        return self

    def empty(self) -> list[int]:
        """The annotations that enclose nothing of their image: no polygon of three corners, no run of the object."""
        sizes = {image.id: (image.width, image.height) for image in self.images}
        annotations = enumerate(self.annotations)
        return [number for number, item in annotations if not _encloses(item.segmentation, sizes[item.image_id])]


class LabelMeShape(_Checked):
    """One shape; old files have polygons only and do not say so."""

    label: ClassName
    points: list[tuple[float, float]]
    shape_type: Annotated[str, BeforeValidator(lambda value: "polygon" if value is None else value)] = "polygon"
    mask: str | None = None

    @model_validator(mode="after")
    def _drawable(self) -> "LabelMeShape":
        if self.shape_type not in (*AREAS, *WITHOUT_AREA):
            raise ValueError(f"shape_type: {self.shape_type!r} is not known; draw it as a polygon")
        allowed = {"rectangle": (2, 4), "circle": (2,), "mask": (2,)}.get(self.shape_type)
        if self.shape_type in AREAS and (len(self.points) not in allowed if allowed else len(self.points) < 3):
            raise ValueError(f"points: a {self.shape_type} with {len(self.points)} of them")
        if self.shape_type == "mask" and self.mask is None:
            raise ValueError("mask: is missing in a shape of that type")
        return self


class LabelMeFile(_Checked):
    """A LabelMe file; without sizes it is of the image as shown."""

    shapes: list[LabelMeShape]
    imagePath: str | None = None
    imageHeight: PositiveInt | None = None
    imageWidth: PositiveInt | None = None

    @model_validator(mode="after")
    def _inside(self) -> "LabelMeFile":
        if self.imageHeight and self.imageWidth:
            for number, shape in enumerate(self.shapes):
                corners = [value for point in shape.points for value in point]
                if problem := _misfit([corners], self.imageHeight, self.imageWidth):
                    raise ValueError(f"shapes[{number}].points: {problem}")
        return self


Model = TypeVar("Model", bound=BaseModel)


def read_annotation(path: Path) -> Any:
    """What a JSON file holds; UserError when it cannot be read, or an object has a key twice."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_object)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file: {error}; correct it or remove it") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands twice in one object")
    return content


def parse(model: type[Model], path: Path, kind: str) -> Model:
    """The checked content of a JSON file; UserError names the file, and the key that is wrong for one of that kind."""
    try:
        return model.model_validate(read_annotation(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where, reason = "", str(first["msg"]).removeprefix("Value error, ").replace("Input should", "should")
        reason = "should be an object" if "instance of" in reason else reason
        for part in first["loc"]:
            if not re.fullmatch(r"[a-z]\w*", str(part)) and not isinstance(part, int):
                break  # pydantic's own word for one of several forms
            where += f"[{part}]" if isinstance(part, int) else f".{part}"
        raise UserError(
            f"{path}: {where.removeprefix('.')}{': ' * bool(where)}{reason}; no {kind} file, or damaged"
        ) from None


def unpack_runs(text: str) -> list[int]:
    """Run lengths from COCO's text: five bits a letter, lowest first; after three, less the one before the last.

    pycocotools reads past the end of text that stops within a number, and does not tell what the runs add up to.
    """
    if not re.fullmatch(r"(?:[P-o]{0,6}[0-O])*", text):
        raise ValueError("run lengths that are no packed text")
    runs: list[int] = []
    for number in re.findall("[P-o]*[0-O]", text):
        value = sum((ord(letter) - 48 & 31) << 5 * place for place, letter in enumerate(number))
        value -= (ord(number[-1]) - 48 & 16) << 5 * len(number) - 4  # the sign
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _encloses(segmentation: Segmentation, size: tuple[int, int]) -> bool:
    if isinstance(segmentation, RunLengths):
        return bool(segmentation.decode().any())
    sides = [[(polygon[axis::2], size[axis]) for axis in (0, 1)] for polygon in segmentation if len(polygon) >= 6]
    return any(all(min(values) < end and max(values) > 0 for values, end in pair) for pair in sides)


def _misfit(segmentation: Segmentation, height: int, width: int) -> str | None:
    if isinstance(segmentation, RunLengths):
        return f"run lengths of {segmentation.size[::-1]}" if segmentation.size != (height, width) else None
    for values, side in ((polygon[axis::2], (width, height)[axis]) for polygon in segmentation for axis in (0, 1)):
        if max(map(abs, values), default=0) > FAR * side:
            return f"a corner at {max(values, key=abs):g}"
    return None


def decode_segmentation(segmentation: Segmentation, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a COCO segmentation (polygons, or run lengths as a list or packed) to a mask (height, width)."""
    if isinstance(segmentation, RunLengths):
        return segmentation.decode()
    # pycocotools would take four numbers for a box; fewer than three corners enclose nothing
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), dtype=np.bool_)
    return np.asarray(coco_mask.decode(coco_mask.frPyObjects(polygons, height, width)).any(axis=2), dtype=np.bool_)


def paint(height: int, width: int, shapes: Sequence[tuple[int, NDArray[np.bool_]]]) -> Label:
    """Paint the masks of instances, (class, (height, width)), into one class map, the smaller instance on top.

    Of two instances of the same area the later stays on top.
    """
    label = np.zeros((height, width), dtype=np.uint8)
    for value, mask in sorted(shapes, key=lambda shape: -int(shape[1].sum())):
        label[mask] = value
    return label

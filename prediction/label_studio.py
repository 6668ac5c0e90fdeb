"""Label Studio's JSON: its annotations to masks, and what is found to its predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray

from prediction.formats.outline import single_outline
from prediction.objects import find_objects, object_scores
from prediction.predictor import Prediction
from util.errors import UserError

CONTROLS = ("BrushLabels", "PolygonLabels")
WORD = 8  # bits of a value
COUNTS = 3, 4, 8, 16  # bits that the length of a block may have
TOLERANCE = 1.0  # pixels that a polygon's corners may be off, so that it can be edited


class Control(NamedTuple):
    """The part of a labelling interface that predictions go to."""

    name: str
    kind: str  # of CONTROLS
    image: str  # the object that it labels
    key: str  # of a task's data that names the image
    labels: tuple[str, ...]


def find_control(interface: str) -> Control:
    """The first brush or polygon control of a labelling interface; UserError if there is none."""
    try:
        root = ElementTree.fromstring(interface if "<!" not in interface else "")  # no entities
    except ElementTree.ParseError as error:
        raise UserError(f"label_config: no labelling interface ({error})") from None
    keys = {item.get("name"): (item.get("value") or "").removeprefix("$") for item in root.iter("Image")}
    for item in root.iter():
        if item.tag in CONTROLS and item.get("toName") in keys:
            labels = tuple(label.get("value") or "" for label in item.iter("Label"))
            image = item.get("toName") or ""
            return Control(item.get("name") or "", item.tag, image, keys[image], labels)
    raise UserError(f"label_config: has no {' or '.join(CONTROLS)} for an Image; add one")


def annotation_masks(result: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> dict[str, NDArray[np.uint8]]:
    """What an annotation marks in an image of size (h, w), by label: 1, else 0; UserError for what is damaged."""
    masks: dict[str, NDArray[np.uint8]] = {}
    for item in result:
        value = item.get("value", {})
        for label in value.get(item.get("type", ""), ()):
            try:
                drawn = _draw(value, size)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise UserError(f"annotation of {label!r}: cannot be read ({error}); save it again") from None
            if drawn is not None:
                masks[label] = np.maximum(masks.get(label, 0), drawn)
    return {label: mask for label, mask in masks.items() if mask.any()}


def as_result(prediction: Prediction, control: Control) -> list[dict[str, Any]]:
    """A prediction as Label Studio's regions: a brush for each class, or a polygon for each object."""
    height, width = prediction.mask.shape
    kind = control.kind.lower()
    shared: dict[str, Any] = {"from_name": control.name, "to_name": control.image, "type": kind}
    shared |= {"original_width": width, "original_height": height, "image_rotation": 0}
    value: dict[str, Any]
    result = []
    if kind == "brushlabels":
        for found in prediction.found():
            region = (prediction.mask == prediction.names.index(found.name) + 1).astype(np.uint8)
            value = {"format": "rle", "rle": encode_brush(region), kind: [found.name]}
            result.append({**shared, "id": found.name, "score": found.score, "value": value})
        return result
    scores = object_scores(prediction.mask, prediction.class_probabilities)
    each = {value: iter(known) for value, known in scores.items()}
    for number, item in enumerate(find_objects(prediction.mask), 1):
        corners = cv2.approxPolyDP(single_outline(item.region()).astype(np.int32), TOLERANCE, True).reshape(-1, 2)
        points = (corners + item.box[:2] + 0.5) * (100 / width, 100 / height)
        value = {"points": points.tolist(), "closed": True, kind: [prediction.names[item.value - 1]]}
        if len(points) > 2:
            result.append({**shared, "id": f"object{number}", "score": next(each[item.value]), "value": value})
    return result


def encode_brush(region: NDArray[np.uint8]) -> list[int]:
    """A region (h, w) as a brush: runs of the values of an RGBA image, 255 where it is, in bits of varying number."""
    flat = np.repeat(np.minimum(region.ravel(), 1), 4)
    starts = np.flatnonzero(np.diff(flat, prepend=2))
    bits = [f"{flat.size:032b}{WORD - 1:05b}", *(f"{count - 1:04b}" for count in COUNTS)]
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), flat.size], strict=True):
        for left in range(end - start, 0, -(1 << COUNTS[-1])):
            length = min(left, 1 << COUNTS[-1]) - 1
            which = next(number for number, count in enumerate(COUNTS) if length < 1 << count)
            bits.append(f"1{which:02b}{length:0{COUNTS[which]}b}{255 * flat[start]:08b}")
    text = "".join(bits)
    return list(int(text + "0" * (-len(text) % 8), 2).to_bytes(-(-len(text) // 8), "big"))


def decode_brush(packed: Sequence[int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The region (h, w) of a brush: 1, else 0; ValueError where it is damaged or of another size."""
    bits, position = np.unpackbits(np.asarray(packed, np.uint8)), 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        if position > bits.size:
            raise ValueError("run lengths that stop too early")
        return int.from_bytes(np.packbits(np.pad(bits[position - count : position], (-count % 8, 0))).tobytes(), "big")

    total, word = take(32), take(5) + 1
    counts = [take(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"run lengths of {total} values for {size[1]}x{size[0]} pixels of 4")
    values, at = np.zeros(total, np.uint8), 0
    while at < total:
        is_run = take(1)
        length = take(counts[take(2)]) + 1
        if is_run:
            values[at : at + length] = take(word) > 0
        else:
            end = position + length * word
            values[at : at + length] = np.any(bits[position:end].reshape(length, word) > 0, 1, keepdims=False)
            position = end
        at += length
    return values.reshape(*size, 4)[..., 3]


def _draw(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.uint8] | None:
    height, width = size
    if value.get("format") == "rle":
        return decode_brush(value["rle"], size)
    drawn = np.zeros(size, np.uint8)
    if "points" in value:
        points = np.asarray(value["points"], np.float64) * (width / 100, height / 100)
        cv2.fillPoly(drawn, [np.floor(points).astype(np.int32)], 1)
    elif {"x", "y", "width", "height"} <= value.keys() and not value.get("rotation"):
        left, top = value["x"] * width / 100, value["y"] * height / 100
        right, bottom = left + value["width"] * width / 100, top + value["height"] * height / 100
        drawn[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = 1
    else:
        return None
    return drawn

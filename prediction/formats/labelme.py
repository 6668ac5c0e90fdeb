"""LabelMe's annotations: a polygon for every object without holes, else a packed mask."""

import base64
import json
import os

import numpy as np

from prediction.formats.images import Segment, SegmentedImage
from prediction.formats.outline import outline
from prediction.formats.writer import FormatWriter
from util.visualize import encode_image

VERSION = "5.5.0"  # of LabelMe's files, which have masks since 5.2


class LabelMe(FormatWriter):
    """A folder with a JSON file for every image, which names the image by the way there.

    A polygon's corners are centres of pixels: LabelMe fills it, with its outline, to the same mask.
    """

    place = "labelme"

    def add(self, image: SegmentedImage) -> None:
        own = self.file(image.name, ".json")
        final = (self.folder / own.relative_to(self.work)).parent
        content = {
            **{"version": VERSION, "flags": {}, "shapes": [_shape(segment) for segment in image.segments]},
            **{"imagePath": os.path.relpath(image.path, final.resolve()), "imageData": None},
            **{"imageHeight": image.size[0], "imageWidth": image.size[1]},
        }
        own.write_text(json.dumps(content, indent=1) + "\n")


def _shape(segment: Segment) -> dict[str, object]:
    left, top, right, bottom = segment.object.box
    region = segment.object.region()
    corners = outline(region)
    shared: dict[str, object] = {
        **{"label": segment.name, "description": f"score {segment.score:.4f}"},
        **{"group_id": None, "flags": {}},
    }
    if corners is not None:
        points = np.add(corners, (left, top)).tolist()
        return {**shared, "shape_type": "polygon", "points": points, "mask": None}
    packed = base64.b64encode(encode_image(region * 255, ".png")).decode()
    ends = [[left, top], [right - 1, bottom - 1]]
    return {**shared, "shape_type": "mask", "points": ends, "mask": packed}

"""COCO's instance annotations: an annotation with run lengths for every object, so that masks are the same."""

import json
import shutil
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from prediction.formats.images import SegmentedImage
from prediction.formats.writer import FormatWriter
from prediction.objects import MaskObject


class Coco(FormatWriter):
    """One file; `file_name` is the image below the folder of the queries, a category's id its value in the masks."""

    place = "coco.json"

    def begin(self) -> None:
        self.images = (self.work / self.place).open("w+b")
        self.annotations = (self.work / "annotations").open("w+b")
        self.counts = [0, 0]
        self.images.write(b'{"images": [')

    def add(self, image: SegmentedImage) -> None:
        height, width = image.size
        number = self._write(0, {"file_name": image.file, "width": width, "height": height})
        for segment in image.segments:
            left, top, right, bottom = segment.object.box
            self._write(
                1,
                {
                    **{"image_id": number, "category_id": segment.object.value, "iscrowd": 0},
                    **{"bbox": [left, top, right - left, bottom - top], "area": segment.object.area},
                    **{"score": segment.score, "segmentation": run_lengths(segment.object, image.size)},
                },
            )

    def end(self) -> None:
        with self.images as whole, self.annotations as annotations:
            annotations.seek(0)
            whole.write(b'],\n"annotations": [')
            shutil.copyfileobj(annotations, whole)
            categories = [{"id": value, "name": name} for value, name in self.classes.items()]
            whole.write(b'],\n"categories": ' + json.dumps(categories).encode() + b"}\n")

    def _write(self, which: int, entry: dict[str, Any]) -> int:
        self.counts[which] += 1
        text = json.dumps({"id": self.counts[which], **entry})
        (self.images, self.annotations)[which].write((",\n" * (self.counts[which] > 1) + text).encode())
        return self.counts[which]


def run_lengths(item: MaskObject, size: tuple[int, int]) -> dict[str, Any]:
    """An object in an image of that size as COCO packs it, which decodes to the same mask; runs go down the columns."""
    left, top, right, bottom = item.box
    columns = np.zeros((right - left, bottom - top + 1), np.int8)
    columns[:, :-1] = item.region().T
    column, row = np.divmod(np.flatnonzero(np.diff(columns.ravel(), prepend=np.int8(0))), bottom - top + 1)
    bounds, times = np.unique((column + left) * size[0] + row + top, return_counts=True)
    counts = np.diff(bounds[times == 1], prepend=0, append=size[0] * size[1])  # a run may go on in the next column
    packed = coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return {"size": list(size), "counts": packed["counts"].decode()}

"""A table of all objects."""

import csv
import io

import numpy as np

from prediction.formats.images import SegmentedImage
from prediction.formats.writer import FormatWriter, write_line

COLUMNS = (
    *("file", "object", "class", "value", "score", "left", "top", "right", "bottom", "x", "y"),
    *("area", "length", "width", "area_m2", "length_m", "width_m"),
)


class ObjectsCsv(FormatWriter):
    """A row for every object: place, area and sides in pixels, and in metres where the image's file tells their size.

    x and y are the centre of gravity, length and width the sides of the smallest rectangle around the object, which may
    be turned.
    """

    place = "objects.csv"

    def begin(self) -> None:
        self.rows = (self.work / self.place).open("wb")
        self._write(COLUMNS)

    def add(self, image: SegmentedImage) -> None:
        linear = image.place.metres if image.place else None
        for number, segment in enumerate(image.segments, 1):
            item = segment.object
            metres: list[object] = [""] * 3
            if linear is not None:
                area = item.area * abs(np.linalg.det(linear))
                metres = [round(float(value), 4) for value in (area, *item.sides(linear))]
            measured = [round(value, 2) for value in (*item.centroid, item.area, *item.sides())]
            known = [image.file, number, segment.name, item.value, segment.score, *item.box, *measured]
            self._write([*known, *metres])

    def end(self) -> None:
        self.rows.close()

    def _write(self, fields: object) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(fields)  # type: ignore[arg-type]
        write_line(self.rows, text.getvalue())

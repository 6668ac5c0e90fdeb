"""YOLO's segmentation data sets: text files of outlines, and links to the images beside them."""

import os

import yaml

from prediction.formats.images import SegmentedImage
from prediction.formats.outline import single_outline
from prediction.formats.writer import FormatWriter

INSIDE = 0.25  # of a pixel from its corner: some readers cut coordinates off, some round them


class Yolo(FormatWriter):
    """A folder with labels/, images/ (links) and data.yaml; classes are numbered from 0 in the order of their values.

    A line is `class x y x y ...`: an object's outermost pixels as parts of width and height, on one line with those of
    its holes. `cv2.fillPoly`, with which trainers draw it, gives the same mask.
    """

    place = "yolo"

    def begin(self) -> None:
        for name in ("labels", "images"):
            (self.work / self.place / name).mkdir(parents=True)
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.classes.values()))}
        (self.work / self.place / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        self.numbers = {value: number for number, value in enumerate(self.classes)}

    def add(self, image: SegmentedImage) -> None:
        lines = []
        for segment in image.segments:
            points = single_outline(segment.object.region()) + segment.object.box[:2] + INSIDE
            parts = (points / image.size[::-1]).ravel()
            lines.append(" ".join([str(self.numbers[segment.object.value]), *(f"{part:.8f}" for part in parts)]) + "\n")
        self.file(f"labels/{image.name}", ".txt").write_text("".join(lines))
        link = self.file(f"images/{image.name}", image.path.suffix)
        final = (self.folder / link.relative_to(self.work)).parent
        link.symlink_to(os.path.relpath(image.path, final.resolve()))

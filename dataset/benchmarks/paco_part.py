"""PACO-Part: parts of objects of COCO 2017, in the crop of one object (Matcher, ICLR 2024)."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from dataset.benchmarks.base import Benchmark, ImageIndex, ImageMaskStore, Mode, listed_index
from dataset.benchmarks.objects import Box, ObjectCropStore, first_file, require_hsnet
from dataset.lists import read_pickle
from util.errors import UserError

TRAIN_CLASSES = 448


class PacoMaskStore(ObjectCropStore):
    """Objects of COCO's images; `annotations` has those of a name's object."""

    annotations: dict[str, list[Any]]

    def raw_box(self, name: str) -> Box:
        """From left, top, width, height."""
        left, top, width, height = self.annotations[name][0]["obj_bbox"]
        return int(left), int(top), int(left + width), int(top + height)

    def shapes(self, name: str, class_id: int) -> Iterable[Any]:
        return [part["segmentation"] for part in self.annotations[name] if part["category_id"] == class_id]


class PacoPart(Benchmark):
    """Every fourth class of the training pickle, if more than `shot` validation images hold it; numbers are PACO's."""

    ROOT, FOLDS, EPISODES = "../data/PACO-Part", 4, 2500

    @cached_property
    def _content(self) -> tuple[list[int], dict[int, dict[Any, str]], dict[Any, list[Any]]]:
        """Training classes in order; validation class -> image id -> path; image id -> annotations."""
        files = "paco_part_train.pkl", "paco_part_val.pkl"
        paths = [first_file(self.lists / name, self.root / name) for name in files]
        train, val = map(read_pickle, paths)
        try:
            images = {c: {i: path for one in listed for i, path in one.items()} for c, listed in val["cid2img"].items()}
            return list(train["cid2img"]), images, val["img2anno"]
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{paths[1]}: not cid2img and img2anno ({error!r}); take it from paco.zip") from None

    def wanted(self, mode: Mode) -> list[int]:
        """The classes of the fold in the file's order; they depend on the number of shots."""
        train, images, _ = self._content
        return [c for c in train[self.cfg.split :: 4] if len(images.get(c, ())) > self.cfg.shot]

    def index(self, mode: Mode) -> ImageIndex:
        """The class is drawn, then an image, then an object in it, for query and supports alike."""
        require_hsnet(self.cfg)
        _, images, annotations = self._content
        by_class = {c: [str(image) for image in images[c]] for c in self.wanted(mode)}
        objects = {}
        for c in by_class:
            for i in images[c]:
                found = dict.fromkeys(part["obj_ann_id"] for part in annotations[i] if part["category_id"] == c)
                objects[c, str(i)] = [f"{i}#{number}" for number in found]
        return listed_index(by_class, draw_class=True, objects=objects)

    def files(self, index: ImageIndex) -> ImageMaskStore:
        _, images, annotations = self._content
        pairs, source = {}, self.root / "paco_part_val.pkl"
        parts: dict[str, list[Any]] = {}
        for class_id in index.by_class:
            for image, path in images[class_id].items():
                for found in annotations[image]:
                    name = f"{image}#{found['obj_ann_id']}"
                    pairs[name] = (self.root / "coco" / "/".join(path.split("/")[-2:]), source)
                    if found not in parts.setdefault(name, []):
                        parts[name].append(found)
        files = PacoMaskStore(pairs)
        files.annotations = parts
        return files.checked(source)

    def names(self) -> dict[int, str]:
        # The pickles have no names.
        return {c: f"PACO part {c}" for c in self.wanted("test")}

    def notes(self) -> list[str]:
        count = len(self._content[0])
        return [] if count == TRAIN_CLASSES else [f"{count} training classes, should be {TRAIN_CLASSES}: other folds"]

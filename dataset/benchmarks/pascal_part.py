"""PASCAL-Part: parts of objects of VOC 2010, in the crop of one object (Matcher, ICLR 2024)."""

import json
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset.benchmarks.base import Benchmark, ImageIndex, ImageMaskStore, Mode, listed_index
from dataset.benchmarks.objects import Box, ObjectCropStore, first_file, require_hsnet
from util.errors import UserError

KINDS = ("animals", "indoor", "person", "vehicles")
LIST, ANNOTATIONS = "all_obj_part_to_image.json", "Annotations_Part_json_merged_part_classes"
MOST = 2500


class PartMaskStore(ObjectCropStore):
    """Objects of VOC's images; their annotations are read when they are wanted."""

    names: dict[int, str]

    def raw_box(self, name: str) -> Box:
        """left, top, right, bottom as the file has them."""
        left, top, right, bottom = (int(side) for side in self._object(name)["bndbox"].values())
        return left, top, right, bottom

    def shapes(self, name: str, class_id: int) -> Iterable[Any]:
        """All masks of the part; an object may have two hands."""
        part = self.names[class_id].partition("+")[2]
        return [mask for found in self._object(name)["parts"] if found["name"] == part for mask in found["mask"]]

    def _object(self, name: str) -> Any:
        return read_objects(self[name][1])[int(name.rpartition("#")[2])]


@lru_cache(maxsize=8192)
def read_objects(path: Path) -> list[Any]:
    """The objects of an annotation file; UserError for one that is missing or damaged."""
    try:
        return list(json.loads(path.read_bytes())["object"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable part annotation ({error}); unpack pascal.zip again") from None


Parts = dict[str, dict[str, dict[str, list[str]]]]  # object -> part -> {"train": images, "val": images}


def read_parts(path: Path, fold: int) -> Parts:
    """The parts of a fold's objects; UserError for a file that is not the list of them."""
    try:
        content = json.loads(path.read_bytes())[KINDS[fold]]["object"]
        return {name: dict(found["part"].items()) for name, found in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the list of objects and parts ({error!r}); unpack pascal.zip again") from None


def part_names(parts: Parts) -> list[str]:
    """object+part where there are training and validation images; the aeroplane's tail is left out, as in Matcher."""
    entries = [(f"{o}+{part}", images) for o, found in parts.items() for part, images in found.items()]
    return [name for name, images in entries if images["train"] and images["val"] and name != "aeroplane+TAIL"]


class PascalPart(Benchmark):
    """Folds are animals, indoor, person and vehicles; a class is `object+part` with training and validation images."""

    ROOT, FOLDS = "../data/PASCAL-Part", 4

    @cached_property
    def _parts(self) -> Parts:
        return read_parts(first_file(self.lists / LIST, self.root / LIST), self.cfg.split)

    def names(self) -> dict[int, str]:
        """Number of a part in its fold -> object+part."""
        return dict(enumerate(part_names(self._parts), 1))

    def wanted(self, mode: Mode) -> list[int]:
        return list(self.names())

    def index(self, mode: Mode) -> ImageIndex:
        """Reads the annotations of the fold's validation images, which alone say what objects are in them."""
        require_hsnet(self.cfg)
        by_class, objects = {}, {}
        for class_id, name in tqdm(self.names().items(), "reading part annotations", delay=1):
            wanted, _, part = name.partition("+")
            by_class[class_id] = [str(image) for image in self._parts[wanted][part]["val"]]
            for image in by_class[class_id]:
                found = [(k, o) for k, o in enumerate(read_objects(self._annotation(image))) if o["name"] == wanted]
                holds = [any(p["name"] == part for p in o["parts"]) for _, o in found]
                pairs = zip(found, holds, strict=True)
                objects[class_id, image] = [f"{image}#{k}" if has_part else None for (k, _), has_part in pairs]
        return listed_index(by_class, objects=objects, distinct=True)

    def files(self, index: ImageIndex) -> ImageMaskStore:
        names = [name for found in index.objects.values() for name in found if name]
        images = [name.rpartition("#")[0] for name in names]
        pairs = [(self.root / f"JPEGImages/{image}.jpg", self._annotation(image)) for image in images]
        files = PartMaskStore(zip(names, pairs, strict=True))
        files.names = self.names()
        return files.checked(self.root / LIST)

    def episodes(self, index: ImageIndex) -> int:
        """As many as there are entries of validation images, but 2500 at most."""
        entries = sum(len(images["val"]) for found in self._parts.values() for images in found.values())
        return min(entries, MOST)

    def notes(self) -> list[str]:
        return [f"{len(self.names())} parts of {KINDS[self.cfg.split]}; 56 over all folds: unverified"]

    def _annotation(self, image: str) -> Path:
        return self.root / ANNOTATIONS / f"{image}.json"

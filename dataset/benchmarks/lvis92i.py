"""LVIS-92i: ten folds of the classes of LVIS, on the images of COCO 2017 (Matcher, ICLR 2024)."""

import json
from functools import cached_property
from typing import Any

from dataset.benchmarks.base import Benchmark, ImageIndex, ImageMaskStore, Mode, listed_index
from dataset.benchmarks.objects import first_file, union
from dataset.lists import read_pickle
from dataset.reading import Mask
from util.errors import UserError


class LvisMaskStore(ImageMaskStore):
    """The mask of a class is the union of its instances."""

    may_be_empty = True
    annotations: dict[int, dict[str, Any]]

    def read(self, name: str, class_id: int) -> Mask:
        instances = self.annotations[class_id][name]["annotations"]
        return union((instance["segmentation"] for instance in instances), self.size(name), name)


class Lvis92i(Benchmark):
    """Every tenth of the classes with more than `shot` images in lvis_val.pkl, in its order; numbers are LVIS's."""

    ROOT, FOLDS, EPISODES = "../data/LVIS", 10, 2300

    @cached_property
    def annotations(self) -> dict[int, dict[str, Any]]:
        """Class -> image path -> annotations."""
        path = first_file(self.lists / "lvis_val.pkl", self.root / "lvis_val.pkl")
        content = read_pickle(path)
        if not isinstance(content, dict) or not all(isinstance(images, dict) for images in content.values()):
            raise UserError(f"{path}: not {{class: {{image: annotations}}}}; take lvis_val.pkl of lvis.zip")
        return content

    def index(self, mode: Mode) -> ImageIndex:
        """Classes take turns in the order of the file."""
        return listed_index({c: list(self.annotations[c]) for c in self.wanted(mode)})

    def wanted(self, mode: Mode) -> list[int]:
        """The classes of the fold, in the order of the file; they depend on the number of shots."""
        usable = [c for c, images in self.annotations.items() if len(images) > self.cfg.shot]
        return usable[self.cfg.split : len(usable) // 10 * 10 : 10]

    def files(self, index: ImageIndex) -> ImageMaskStore:
        files = LvisMaskStore({name: (self.root / "coco" / name, self.root / "lvis_val.pkl") for name in index.images})
        files.annotations = self.annotations
        return files.checked(self.root / "lvis_val.pkl")

    def names(self) -> dict[int, str]:
        """From lvis_v1_val.json where it is beside the pickle, which has none."""
        path = self.root / "lvis_v1_val.json"
        known = {c["id"]: c["name"] for c in json.loads(path.read_bytes())["categories"]} if path.is_file() else {}
        return {c: known.get(c, f"LVIS {c}") for c in self.wanted("test")}

    def notes(self) -> list[str]:
        return [f"{len(self.wanted('test'))} classes in this fold at {self.cfg.shot} shot; 92 by the paper: unverified"]

"""COCO-20i: MS COCO 2014, 4 folds of 20 classes."""

from pathlib import Path

from dataset.benchmarks.base import CLASS_NAMES, ImageIndex, listed_index
from dataset.benchmarks.layout import ListedMasks
from dataset.lists import read_class_lists
from util.errors import UserError

COCO_CLASSES = CLASS_NAMES["coco"]


class Coco(ListedMasks):
    """COCO-20i: every fourth class is novel (FWB, Nguyen and Todorovic, ICCV 2019), or 20 in a row (PANet)."""

    CLASSES = COCO_CLASSES
    ROOT, FOLDS, EPISODES = "../data/MSCOCO2014", 4, 1000
    PUBLIC = "coco20i_hsnet_{part}_fold{fold}.txt", "coco/{part}/fold{fold}.pkl", "{part}/fold{fold}.pkl"

    def public_index(self) -> ImageIndex:
        """HSNet's lists: the class is drawn, then the query from its images."""
        if not self.cfg.use_split_coco:
            raise UserError("use_split_coco: HSNet's lists are of the folds of use_split_coco True")
        fold = self.cfg.split
        path = self.public_list("val", fold)
        listed = read_class_lists(path)
        if missing := [c for c in self.wanted("test") if not listed.get(c)]:
            raise UserError(f"{path}: no image of class {missing[0]}, novel in split {fold}; take the fold's own list")
        by_class = {c: [_image_path(name) for name in listed[c]] for c in self.wanted("test")}
        return listed_index(by_class, draw_class=True)

    def mask_of(self, image: str) -> str:
        return f"annotations/{image.removesuffix('.jpg')}.png"

    def image_label(self, name: str) -> str:
        """COCO's image id."""
        return str(int(Path(name).stem[-12:]))


def _image_path(name: str) -> str:
    """The path of an image by its id; HSNet's own lists have paths."""
    return f"val2014/COCO_val2014_{int(name):012}.jpg" if name.isdecimal() else name

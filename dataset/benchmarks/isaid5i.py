"""iSAID-5i: aerial images in patches of 256x256, 3 folds of 5 classes (Yao et al., TGRS 2022)."""

from dataset.benchmarks.base import CLASS_NAMES, ImageIndex, query_index
from dataset.benchmarks.layout import ListedMasks
from dataset.lists import read_labelled

PATCH = 256
SUFFIX = "_instance_color_RGB.png"


def mask_path(image: str) -> str:
    """The mask of a patch."""
    return image.replace("/images/", "/semantic_png/").replace(".png", SUFFIX)


class Isaid(ListedMasks):
    """Its public lists are SCCNet's; `protocol: released` on its filtered lists is DMNet's evaluation."""

    CLASSES = CLASS_NAMES["isaid5i"]
    ROOT, FOLDS = "../data/iSAID_patches", 3
    PUBLIC = "isaid5i_{part}_fold{fold}.txt", "isaid/{part}/fold{fold}.txt", "{part}/fold{fold}.txt"

    def public_index(self) -> ImageIndex:
        """Every line of the fold's list is a query, once."""
        lines = read_labelled(self.public_list("val", self.cfg.split))
        return query_index([(f"val/images/{patch_name(name)}.png", c) for name, c in lines], self.wanted("test"))

    def mask_of(self, image: str) -> str:
        return mask_path(image)

    def notes(self) -> list[str]:
        if self.cfg.protocol == "hsnet":
            return ["SCCNet's lists; whether INSID3's are the same is unverified"]
        return ["filtered training lists (DMNet) score some points above unfiltered ones"]


def patch_name(name: str) -> str:
    """The full name of a patch that a list calls by its corner: P0003_0_206 is P0003_0_256_206_462."""
    parts = name.split("_")
    if len(parts) != 3:
        return name
    image, y, x = parts[0], int(parts[1]), int(parts[2])
    return f"{image}_{y}_{y + PATCH}_{x}_{x + PATCH}"

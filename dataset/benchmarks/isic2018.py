"""ISIC 2018: skin lesions of three kinds, a test set for networks trained on other images (PATNet, ECCV 2022)."""

from dataset.benchmarks.base import Benchmark, GreyMaskStore, ImageIndex, ImageMaskStore, Mode, listed_index
from dataset.lists import find_list, read_lines
from util.errors import UserError

IMAGES, MASKS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"


class Isic2018(Benchmark):
    """Its classes are those of PATNet's class_id.csv; variant `ifa` exchanges the first two, and so the draws."""

    CLASSES = ("seborrheic_keratosis", "nevus", "melanoma")
    ROOT, EPISODES, VARIANTS = "../data/ISIC2018", 600, ("patnet", "ifa")
    NOTES = ("600 episodes as in PATNet's code; its author says 1200, and gives the mean of 5 seeds",)

    def names(self) -> dict[int, str]:
        first, second, third = self.CLASSES
        return dict(enumerate((second, first, third) if self.variant == "ifa" else self.CLASSES, 1))

    def index(self, mode: Mode) -> ImageIndex:
        """Classes take turns; the images of each are sorted by name."""
        path = find_list(self.lists, "isic2018_class_id.csv", "isic/class_id.csv", "class_id.csv")
        rows = [line.split(",") for line in read_lines(path)[1:]]
        by_class = {
            number: sorted(row[0] for row in rows if row[1:] == [name]) for number, name in self.names().items()
        }
        if not all(by_class.values()):
            raise UserError(f"{path}: no lines `ID,Class` of {', '.join(self.CLASSES)}; fetch the list again")
        return listed_index({c: [f"{IMAGES}/{name}.jpg" for name in names] for c, names in by_class.items()})

    def files(self, index: ImageIndex) -> ImageMaskStore:
        masks = {name: self.root / MASKS / f"{self.image_label(name)}_segmentation.png" for name in index.images}
        return GreyMaskStore({name: (self.root / name, mask) for name, mask in masks.items()}).checked(self.lists)

"""A benchmark in one file, as docs/extending.md shows it: images of two halves, one of which is the class."""

from dataset.benchmarks.base import Benchmark, ImageIndex, ImageMaskStore, Mode, listed_index


class Halves(Benchmark):
    """`left/*.png` and `right/*.png` with grey masks in `masks/`; the names are the classes."""

    CLASSES = ("left", "right")
    ROOT, EPISODES = "../data/halves", 6

    def index(self, mode: Mode) -> ImageIndex:
        names = self.names()
        listed = {c: sorted(f"{names[c]}/{path.name}" for path in (self.root / names[c]).glob("*.png")) for c in names}
        return listed_index(listed)

    def files(self, index: ImageIndex) -> ImageMaskStore:
        return ImageMaskStore({name: (self.root / name, self.root / "masks" / name) for name in index.images})

"""Chest X-ray: lungs, a test set for networks trained on other images (PATNet)."""

from pathlib import Path

from dataset.benchmarks.folders import ClassFolders


class ChestXray(ClassFolders):
    """Variant `patnet` takes the 566 images whose masks its code can find, `all` the 704 with a mask."""

    CLASSES = ("lung",)
    ROOT, EPISODES, VARIANTS = "../data/LungSegmentation", 600, ("patnet", "all")
    IMAGE, MASK = "CXR_png/{}.png", "masks/{}_mask.png"

    def chosen(self, names: list[str]) -> list[str]:
        """PATNet's rule for the mask's name fits those of one hospital only."""
        return names if self.variant == "all" else [name for name in names if name.startswith("CHNCXR")]

    def mask(self, name: str) -> Path:
        """With or without a suffix, as the hospitals have it."""
        path = super().mask(name)
        return path if name.startswith("CHNCXR") else path.with_name(f"{name}.png")

    def notes(self) -> list[str]:
        return [f"variant {self.variant}; that PATNet used the 566 images of CHNCXR is unverified", "600 episodes"]

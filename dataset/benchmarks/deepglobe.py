"""DeepGlobe land cover in patches of 408x408 pixels, a test set for networks trained on other images (PATNet)."""

from dataset.benchmarks.folders import ClassFolders


class DeepGlobe(ClassFolders):
    """Six classes, each in the patches where it and another are more than 4.8 %."""

    CLASSES = ("agriculture land", "urban land", "rangeland", "forest land", "water", "barren land")
    FOLDERS = ("1", "2", "3", "4", "5", "6")
    ROOT, EPISODES = "../data/DeepGlobe", 600
    IMAGE, MASK = "image/{}.jpg", "filter_mask/*/{}.png"
    NOTES = ("600 episodes (PATNet's code; its author: 1200, mean of 5 seeds); 5666 patches by the paper: unverified",)

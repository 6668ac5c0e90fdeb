"""SUIM: underwater images, a test set for networks trained on other images (ABCDFSS, IFA)."""

from dataset.benchmarks.folders import ClassFolders


class Suim(ClassFolders):
    """Seven classes; an image counts for a class whose mask is not empty: 3859 masks on 1635 images."""

    CLASSES = ("fish", "human diver", "plants", "reef", "robot", "sea floor and rock", "wreck")
    FOLDERS = ("FV", "HD", "PF", "RI", "RO", "SR", "WR")
    ROOT, EPISODES = "../data/SUIM", 3859
    IMAGE, MASK = "images/{}.jpg", "masks/*/{}.png"
    NOTES = ("3859 episodes as INSID3 (seed 0); FSSDINO 600, ABCDFSS's paper 1650 with seed 2",)

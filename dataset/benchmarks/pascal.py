"""PASCAL-5i: PASCAL VOC 2012 with the masks of the Semantic Boundaries Dataset, 4 folds of 5 classes."""

from dataset.benchmarks.layout import ListedMasks

# fmt: off
PASCAL_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


class Pascal(ListedMasks):
    """PASCAL-5i (Shaban et al., BMVC 2017)."""

    CLASSES = PASCAL_CLASSES

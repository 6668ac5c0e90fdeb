"""What is known of the official data: archives with their checksums, and the sizes of a correct build."""

from dataset.prepare.archive import Archive

COCO_URL = "http://images.cocodataset.org"

# Sizes of PASCAL-5i and COCO-20i with the area threshold of 2048 pixels; COCO's folds are those of FWB.
LIST_SIZES = {"pascal": {"train": 5953, "val": 1449}}
FOLD_SIZES: dict[str, dict[str, tuple[int | None, ...]]] = {
    "pascal": {"train": (4208, 3726, 2752, 4510), "val": (364, 445, 592, 336)},
    "coco": {"train": (21917, None, None, None), "val": (26052, 15305, 13138, 12640)},
}
CLASS_SIZES = {"pascal": ((81, 63, 89, 61, 71), (70, 100, 118, 110, 69), (73, 125, 76, 74, 386), (63, 53, 90, 82, 69))}
AREA_THRESHOLD = 2048


def voc_archive() -> Archive:
    """PASCAL VOC 2012, training and validation data (2 GB)."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    facts = DATASET_YEAR_DICT["2012"]
    wanted = ("JPEGImages", "SegmentationClass", "ImageSets")
    return Archive(str(facts["url"]), str(facts["md5"]), str(facts["base_dir"]), wanted)


def sbd_archive() -> Archive:
    """The Semantic Boundaries Dataset (1.4 GB); its images are those of PASCAL VOC."""
    from torchvision.datasets import SBDataset

    return Archive(SBDataset.url, SBDataset.md5, "benchmark_RELEASE/dataset", ("cls", "train.txt", "val.txt"))


def coco_archives() -> list[Archive]:
    """MS COCO 2014 (20 GB): images and instance annotations; their integrity rests on the zip files' own checksums."""
    annotations = tuple(f"annotations/instances_{part}2014.json" for part in ("train", "val"))
    return [
        Archive(f"{COCO_URL}/annotations/annotations_trainval2014.zip", None, "", annotations),
        Archive(f"{COCO_URL}/zips/train2014.zip", None, "", ("train2014",)),
        Archive(f"{COCO_URL}/zips/val2014.zip", None, "", ("val2014",)),
    ]

"""Small raw data sets in the true file formats of VOC 2012, SBD and COCO 2014, and what their masks should become."""

import json
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

Label = NDArray[np.uint8]
SIZE = (100, 90)  # width, height

# fmt: off
VOC_PALETTE = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128),
    (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]
VOC_BORDER = (224, 224, 192)
COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
# fmt: on
COCO_IDS = [number for number in range(1, 91) if number not in COCO_UNUSED_IDS]


@dataclass
class Raw:
    """A raw data set on disk: its archives, and the expected lists and masks."""

    archives: list[Path]
    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    masks: dict[str, Label] = field(default_factory=dict)


def random_label(rng: np.random.Generator, classes: list[int], border: bool = False) -> Label:
    """A class map with a large rectangle of the first class, smaller ones of the others, a border of 255 if wanted."""
    label = np.zeros(SIZE[::-1], np.uint8)
    for i, value in enumerate(classes):
        height, width = rng.integers(60, 80, 2) if i == 0 else rng.integers(8, 25, 2)
        top, left = rng.integers(0, SIZE[1] - height), rng.integers(0, SIZE[0] - width)
        if border:
            label[max(top - 2, 0) : top + height + 2, max(left - 2, 0) : left + width + 2] = 255
        label[top : top + height, left : left + width] = value
    return label


def write_jpeg(path: Path, rng: np.random.Generator, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(path, quality=80)


def write_palette_png(path: Path, label: Label) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = VOC_PALETTE + [(1, 2, 3)] * (255 - len(VOC_PALETTE)) + [VOC_BORDER]
    image = Image.fromarray(label)
    image.putpalette([channel for colour in colours for channel in colour])
    assert image.mode == "P"
    image.save(path)


def write_sbd_mat(path: Path, label: Label) -> None:
    """GTcls = struct(Boundaries, Segmentation, CategoriesPresent), as SBD has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), dtype=object)
    for i in range(20):
        boundaries[i, 0] = np.zeros((1, 1))
    present = np.unique(label)[np.unique(label) > 0]
    struct = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present.astype(np.uint8)}
    savemat(path, {"GTcls": struct}, do_compression=True)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def pack(path: Path, folder: Path) -> Path:
    """Pack what is in a folder as .tar, .tgz or .zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
            for entry in sorted(folder.iterdir()):
                tar.add(entry, entry.name)
    return path


def make_pascal(folder: Path, archives: Path, rng: np.random.Generator) -> Raw:
    """VOC 2012 and SBD, of which some images are in both, some in one, and some for other tasks' validation."""
    voc = folder / "voc/VOCdevkit/VOC2012"
    sbd = folder / "sbd/benchmark_RELEASE/dataset"
    names = [f"20{year:02}_{number:06}" for year in (7, 8, 11) for number in rng.choice(10**6, 16, replace=False)]
    rng.shuffle(names)
    groups = {
        "voc train": names[0:5],
        "both train": names[5:10],
        "voc val": names[10:25],
        "both val": names[25:30],
        "sbd train": names[30:36],
        "sbd val": names[36:42],
        "sbd held out": names[42:46],  # validation images of VOC's other tasks
        "no segmentation": names[46:48],
    }
    for name in names:
        write_jpeg(voc / f"JPEGImages/{name}.jpg", rng)
    write_lines(voc / "Annotations/unneeded.xml", ["<annotation/>"])
    raw = Raw([])
    voc_masks = groups["voc train"] + groups["both train"] + groups["voc val"] + groups["both val"]
    for i, name in enumerate(voc_masks):
        label = random_label(rng, [i % 20 + 1, (i + 7) % 20 + 1], border=True)  # every class in two validation images
        write_palette_png(voc / f"SegmentationClass/{name}.png", label)
        raw.masks[name] = label
    for i, name in enumerate(
        n for group, members in groups.items() if "sbd" in group or "both" in group for n in members
    ):
        label = random_label(rng, [i % 20 + 1, *rng.integers(1, 21, 1)])
        write_sbd_mat(sbd / f"cls/{name}.mat", label)
        write_jpeg(sbd / f"img/{name}.jpg", rng)
        if name not in groups["both val"]:
            raw.masks[name] = label
    seg_train, seg_val = groups["voc train"] + groups["both train"], sorted(groups["voc val"] + groups["both val"])
    write_lines(voc / "ImageSets/Segmentation/train.txt", seg_train)
    write_lines(voc / "ImageSets/Segmentation/val.txt", seg_val)
    write_lines(voc / "ImageSets/Main/val.txt", sorted(groups["both val"] + groups["sbd held out"]))
    write_lines(voc / "ImageSets/Main/train.txt", groups["both train"])
    write_lines(sbd / "train.txt", groups["sbd train"] + groups["both train"] + groups["sbd held out"])
    write_lines(sbd / "val.txt", groups["sbd val"] + groups["both val"])
    raw.train = sorted(groups["both train"] + groups["sbd train"] + groups["sbd val"]) + sorted(groups["voc train"])
    raw.val = seg_val
    raw.archives = [
        pack(archives / "VOCtrainval_11-May-2012.tar", folder / "voc"),
        pack(archives / "benchmark.tgz", folder / "sbd"),
    ]
    return raw


def make_coco(folder: Path, archives: Path, rng: np.random.Generator, count: int = 8) -> Raw:
    """COCO 2014 with polygons, run lengths of both kinds, crowds, overlaps, and images without annotations."""
    from dataset.benchmarks.coco import COCO_CLASSES

    categories = [{"id": number, "name": name} for number, name in zip(COCO_IDS, COCO_CLASSES, strict=True)]
    rng.shuffle(categories)
    raw = Raw([])
    for part, names in (("train2014", raw.train), ("val2014", raw.val)):
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for image_id in rng.choice(10**6, count, replace=False).tolist():
            name = f"COCO_{part}_{image_id:012}"
            images.append({"id": image_id, "file_name": f"{name}.jpg", "width": SIZE[0], "height": SIZE[1]})
            write_jpeg(folder / f"images/{part}/{name}.jpg", rng)
            shapes = _coco_shapes(rng)
            if len(images) == 2:
                continue  # nothing is annotated in this one
            names.append(name)
            shapes = [shapes[i] for i in rng.permutation(5)[: rng.integers(1, 6)]]
            values = rng.integers(1, 81, len(shapes)).tolist()
            for (segmentation, crowd, _), value in zip(shapes, values, strict=True):
                item = {"image_id": image_id, "category_id": COCO_IDS[value - 1], "segmentation": segmentation}
                annotations.append(item | {"id": len(annotations), "iscrowd": crowd})
            label = np.zeros(SIZE[::-1], np.uint8)
            for value, mask in sorted(
                ((value, mask) for (_, _, mask), value in zip(shapes, values, strict=True)), key=lambda s: -s[1].sum()
            ):
                label[mask] = value
            raw.masks[name] = label
        rng.shuffle(annotations)
        content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        path = folder / f"json/annotations/instances_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        names.sort()
    (folder / "json/annotations/captions_val2014.json").write_text("{}")
    for part in ("train2014", "val2014"):
        (folder / part).mkdir()
        (folder / f"images/{part}").rename(folder / part / part)
        raw.archives.append(pack(archives / f"{part}.zip", folder / part))
    raw.archives.append(pack(archives / "annotations_trainval2014.zip", folder / "json"))
    return raw


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Run lengths of a mask, column by column, beginning with the background."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def _coco_shapes(rng: np.random.Generator) -> list[tuple[object, int, NDArray[np.bool_]]]:
    """One segmentation of every kind, no two of the same area: which is on top would be a matter of order."""
    while True:
        shapes = [_coco_shape(rng, kind) for kind in ("polygon", "polygons", "counts", "packed", "crowd")]
        if len({int(mask.sum()) for _, _, mask in shapes}) == len(shapes):
            return shapes


def _coco_shape(rng: np.random.Generator, kind: str) -> tuple[object, int, NDArray[np.bool_]]:
    """A segmentation of a kind, whether it is a crowd, and its pixels."""
    mask = np.zeros(SIZE[::-1], np.bool_)
    if kind.startswith("polygon"):
        corners = []
        for _ in range(2 if kind == "polygons" else 1):
            height, width = rng.integers(10, 70, 2).tolist()
            top, left = int(rng.integers(0, SIZE[1] - height)), int(rng.integers(0, SIZE[0] - width))
            mask[top : top + height, left : left + width] = True
            right, bottom = left + width, top + height
            corners.append([left, top, right, top, right, bottom, left, bottom])
        return corners, 0, mask
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    centre, radius = rng.integers(20, 70, 2), int(rng.integers(10, 60))
    mask = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    if kind == "packed":
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(SIZE[::-1]), "counts": packed["counts"].decode()}, 0, mask
    if kind == "crowd":
        mask &= rng.random(mask.shape) < 0.7
    return {"size": list(SIZE[::-1]), "counts": run_lengths(mask)}, int(kind == "crowd"), mask

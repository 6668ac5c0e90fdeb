"""Small data sets in the real forms of the benchmarks: archives, lists, and the masks that should come of them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from tests.dataset.prepare.trees import pack, run_lengths

Mask = NDArray[np.uint8]
Truth = dict[tuple[str, int], Mask]  # (label of the image, class) -> mask
SIZE = (48, 56)  # height, width


def rectangle(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Mask:
    """A mask with one object of about a third of the image."""
    mask = np.zeros(size, np.uint8)
    (top, left), (height, width) = rng.integers(2, 14, 2), rng.integers(18, 30, 2)
    mask[top : top + height, left : left + width] = 1
    return mask


def save(path: Path, pixels: NDArray[Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def photo(path: Path, rng: np.random.Generator, size: tuple[int, int] = SIZE) -> None:
    save(path, rng.integers(0, 256, (*size, 3)))


def impure(bits: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Bright and dark values that are not pure, as JPEG-like tools leave them."""
    return np.where(bits, rng.integers(128, 256, bits.shape), rng.integers(0, 128, bits.shape))


def encoded(mask: Mask) -> dict[str, Any]:
    """Packed run lengths with text, as JSON has them."""
    runs = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def pickled(mask: Mask) -> dict[str, Any]:
    """The same as pickles have them, in bytes."""
    return {**encoded(mask), "counts": encoded(mask)["counts"].encode()}


def fss1000(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    truth: Truth = {}
    names = ["zebra", "abe's_flyingfish", "ox_cart"]
    (lists / "fss").mkdir(parents=True)
    (lists / "fss/test.txt").write_bytes("".join(f"{name}\r\n" for name in names).encode())
    for number, name in enumerate(sorted(names), 1):
        for k in range(1, 11):
            mask = rectangle(rng)
            photo(folder / f"FSS-1000/{name}/{k}.jpg", rng)
            save(folder / f"FSS-1000/{name}/{k}.png", impure(mask == 1, rng))
            truth[f"{name}/{k}.jpg", number] = mask
    large = rectangle(rng).repeat(2, 0).repeat(2, 1)  # a mask of another size than its image
    save(folder / "FSS-1000/zebra/8.png", impure(large == 1, rng))
    truth["zebra/8.jpg", 3] = large[::2, ::2]
    photo(folder / "FSS-1000/zebra/10.jpeg", rng)
    pack(folder.parent / "archives/FSS-1000.zip", folder)
    return truth


def isaid5i(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    truth: Truth = {}
    lines = []
    for part in ("train", "val"):
        for i in range(30):
            name = f"P{i:04}_{206 * i}_{206 * i + 256}_0_256"
            mask, class_id = rectangle(rng), i % 15 + 1
            photo(folder / f"iSAID_patches/{part}/images/{name}.png", rng)
            label = np.where(mask == 1, class_id, 0)
            label[0] = 255
            save(folder / f"iSAID_patches/{part}/semantic_png/{name}_instance_color_RGB.png", label)
            if part == "val" and class_id in range(6, 11):
                lines.append(f"{name}__{class_id:02}\n")
                truth[f"val/images/{name}.png", class_id] = np.where(label == 255, 255, mask).astype(np.uint8)
    (lists / "isaid/val").mkdir(parents=True)
    (lists / "isaid/val/fold1.txt").write_text("".join(lines))
    pack(folder.parent / "archives/iSAID_5i.zip", folder)
    return truth


def isic2018(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    truth: Truth = {}
    rows = ["ID,Class"]
    kinds = ["seborrheic_keratosis", "nevus", "melanoma"]
    for i in range(12):
        name, mask = f"ISIC_{i:07}", rectangle(rng)
        photo(folder / f"a/ISIC2018_Task1-2_Training_Input/{name}.jpg", rng)
        save(folder / f"b/ISIC2018_Task1_Training_GroundTruth/{name}_segmentation.png", impure(mask == 1, rng))
        rows.append(f"{name},{kinds[i % 3]}")
        truth[f"ISIC2018_Task1-2_Training_Input/{name}.jpg", i % 3 + 1] = mask
    lists.mkdir(parents=True)
    (lists / "class_id.csv").write_text("\n".join(rows) + "\n")
    for part, archive in (("a", "ISIC2018_Task1-2_Training_Input"), ("b", "ISIC2018_Task1_Training_GroundTruth")):
        pack(folder.parent / f"archives/{archive}.zip", folder / part)
    return truth


def deepglobe(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    """Raw images of six patches a side; each patch is cut into two colours at some column, or has one alone."""
    truth: Truth = {}
    colours = [(255, 255, 0), (0, 255, 255), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    side = 40
    for image in (17, 523):
        pixels = np.zeros((6 * side, 6 * side, 3), np.int64)
        for row, column in np.ndindex(6, 6):
            first, second = rng.choice(7, 2, replace=False).tolist()
            cut = int(rng.choice([0, 1, 2, 15, 30]))  # 1 of 40 columns is 2.5 %, 2 are 5 %
            patch = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
            patch[:, :cut], patch[:, cut:] = colours[first], colours[second]
            for value, columns in ((first, slice(0, cut)), (second, slice(cut, side))):
                if cut >= 2 and value < 6:
                    mask = np.zeros((side, side), np.uint8)
                    mask[:, columns] = 1
                    truth[f"image/{image}_sat_{row}{column}.jpg", value + 1] = mask
        photo(folder / f"train/{image}_sat.jpg", rng, (6 * side, 6 * side))
        save(folder / f"train/{image}_mask.png", impure(pixels > 0, rng))
    pack(folder.parent / "archives/deepglobe.zip", folder)
    return truth


def chest_xray(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    truth: Truth = {}
    for hospital in ("CHNCXR", "MCUCXR"):
        for i in range(5):
            name, mask = f"{hospital}_{i:04}_{i % 2}", rectangle(rng)
            save(folder / f"Lung/CXR_png/{name}.png", rng.integers(0, 256, SIZE))
            if i == 4:
                continue  # an image without a mask
            save(folder / f"Lung/masks/{name}{'_mask' if hospital == 'CHNCXR' else ''}.png", impure(mask == 1, rng))
            if hospital == "CHNCXR":
                truth[f"CXR_png/{name}.png", 1] = mask
    pack(folder.parent / "archives/lung.zip", folder)
    return truth


def suim(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    """The original's colours, not pure, two objects an image."""
    truth: Truth = {}
    colours = {1: (1, 1, 0), 2: (0, 0, 1), 3: (0, 1, 0), 4: (1, 0, 1), 5: (1, 0, 0), 6: (1, 1, 1), 7: (0, 1, 1)}
    for i in range(14):
        classes, bits = [i % 7 + 1, (i + 3) % 7 + 1], np.zeros((*SIZE, 3), np.int64)
        halves = slice(0, 20), slice(26, 56)
        for class_id, columns in zip(classes, halves, strict=True):
            bits[5:40, columns] = colours[class_id]
        for class_id in classes:
            truth[f"images/d_r_{i}_.jpg", class_id] = (bits == np.array(colours[class_id])).all(-1).astype(np.uint8)
        photo(folder / f"train_val/images/d_r_{i}_.jpg", rng)
        save(folder / f"train_val/masks/d_r_{i}_.bmp", impure(bits > 0, rng))
    pack(folder.parent / "archives/SUIM.zip", folder)
    return truth


def lvis92i(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    """25 classes beyond 255, one of a single image; overlapping classes, two instances, polygons and run lengths."""
    truth: Truth = {}
    content: dict[int, dict[str, Any]] = {}
    for i, class_id in enumerate([*(rng.permutation(700)[:24] + 300).tolist(), 1001]):
        content[class_id] = {}
        for k in range(1 if i == 3 else 3):
            name = f"val2017/{(i * 3 + k) % 40 + 1:012}.jpg"
            first, second = rectangle(rng), rectangle(rng)
            rows, columns = (np.flatnonzero(first.any(axis)) for axis in (1, 0))
            (top, bottom), (left, right) = ((int(x[0]), int(x[-1]) + 1) for x in (rows, columns))
            polygon = [left, top, right, top, right, bottom, left, bottom]
            shapes: list[Any] = [[polygon], {"size": list(SIZE), "counts": run_lengths(second == 1)}]
            content[class_id][name] = {"annotations": [{"segmentation": shape} for shape in shapes]}
            truth[name, class_id] = first | second
    for i in range(1, 41):
        photo(folder / f"images/val2017/{i:012}.jpg", rng)
    (folder / "lvis/lvis").mkdir(parents=True)
    for part in ("train", "val"):
        (folder / f"lvis/lvis/lvis_{part}.pkl").write_bytes(pickle.dumps(content))
    for name in ("lvis", "images"):
        pack(folder.parent / f"archives/{name}.zip", folder / name)
    usable = [c for c in content if len(content[c]) > 1]
    return {key: mask for key, mask in truth.items() if key[1] in (usable[1], usable[11])}  # fold 1


def pascal_part(folder: Path, _: Path, rng: np.random.Generator) -> Truth:
    """Two kinds of object of two parts; an image has two objects, of which one lacks the second part."""
    truth: Truth = {}
    ids = [f"2008_{i:06}" for i in range(6)]
    kinds: dict[str, Any] = {}
    objects_of = {
        "animals": ["cat"],
        "indoor": ["bottle", "tvmonitor"],
        "person": ["person"],
        "vehicles": ["aeroplane"],
    }
    for kind, objects in objects_of.items():
        lists = {"BODY": {"train": ids[:2], "val": ids}, "TAIL": {"train": ids[:1], "val": ids[:4]}}
        lists["NONE"] = {"train": [], "val": ids}
        kinds[kind] = {"object": {name: {"part": lists} for name in objects}}
    root = folder / "VOCdevkit/VOC2010"
    for image in ids:
        photo(root / f"JPEGImages/{image}.jpg", rng)
        found: list[dict[str, Any]] = []
        for name in ("bottle", "tvmonitor"):
            for k in range(2):
                body, tail = rectangle(rng), rectangle(rng)
                box = [3, 2, 50, 45]  # left, top, right, bottom
                parts: list[dict[str, Any]] = [{"name": "BODY", "mask": [encoded(body), encoded(tail)]}]
                crop, number = (slice(2, 45), slice(3, 50)), len(found)
                first = 1 if name == "bottle" else 3
                truth[f"{image}#{number}", first] = (body | tail)[crop]
                if k == 1 and image in ids[:4]:
                    parts.append({"name": "TAIL", "mask": [encoded(tail)]})
                    truth[f"{image}#{number}", first + 1] = tail[crop]
                sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(str, box), strict=True))
                found.append({"name": name, "bndbox": sides, "parts": parts})
        (root / "Annotations_Part_json_merged_part_classes").mkdir(exist_ok=True)
        (root / f"Annotations_Part_json_merged_part_classes/{image}.json").write_text(json.dumps({"object": found}))
    (root / "all_obj_part_to_image.json").write_text(json.dumps(kinds))
    pack(folder.parent / "archives/pascal.zip", folder)
    return truth


def paco_part(folder: Path, lists: Path, rng: np.random.Generator) -> Truth:
    """448 training classes; in fold 1 two with three validation images each, of two objects."""
    truth: Truth = {}
    images = {i: f"/data/coco/val2017/{i:012}.jpg" for i in range(1, 7)}
    cid2img: dict[int, list[dict[int, str]]] = {11: [], 15: [], 2000: [{1: images[1]}]}
    img2anno: dict[int, list[dict[str, Any]]] = {}
    for number, (image, path) in enumerate(images.items()):
        photo(folder / f"images/val2017/{image:012}.jpg", rng)
        class_id = (11, 15)[number % 2]
        cid2img[class_id] += [{image: path}, {image: path}]  # listed twice, as in the original
        img2anno[image] = []
        for k in range(2):
            mask, box = rectangle(rng), [4.6, 1.2, 40.0, 44.5]  # left, top, width, height
            part = {"category_id": class_id, "obj_ann_id": 100 * image + k, "obj_bbox": box}
            img2anno[image].append(part | {"segmentation": pickled(mask)})
            truth[f"{image}#{100 * image + k}", class_id] = mask[1:45, 4:44]
    train: dict[int, list[Any]] = {10 + i: [] for i in range(448)}  # 11 and 15 are the first two of fold 1
    (folder / "paco").mkdir(parents=True)
    for half, cids in (("train", train), ("val", cid2img)):
        content = pickle.dumps({"cid2img": cids, "img2anno": img2anno})
        (folder / f"paco/paco_part_{half}.pkl").write_bytes(content)
    for name in ("paco", "images"):
        pack(folder.parent / f"archives/{name}.zip", folder / name)
    return truth


_MAKERS = (fss1000, isaid5i, isic2018, deepglobe, chest_xray, suim, lvis92i, pascal_part, paco_part)
MAKERS: dict[str, Callable[[Path, Path, np.random.Generator], Truth]] = {maker.__name__: maker for maker in _MAKERS}
FOLDS = {"isaid5i": 1, "lvis92i": 1, "pascal_part": 1, "paco_part": 1}

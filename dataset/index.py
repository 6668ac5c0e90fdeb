"""Which images count for which class of a fold (data sets, list files, the area threshold)."""

import ast
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataset.scan import Counts, scan_masks
from util.config import Config
from util.errors import UserError

Mode = Literal["train", "val"]
Files = dict[str, tuple[Path, Path]]  # image name -> image file, mask file
Pair = tuple[str, str]  # image, mask: paths relative to the data root

# fmt: off
PASCAL_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on


@dataclass
class ImageIndex:
    """All that drawing episodes needs: images in list order, the classes in each, the images of each class."""

    images: list[str]
    classes: dict[str, list[int]]  # image -> classes in its mask, ascending, however small
    by_class: dict[int, list[str]]  # wanted class -> its images above the area threshold, in list order


def fold_classes(
    data_set: str, split: int, num_classes: int, folds: int, use_split_coco: bool
) -> tuple[list[int], list[int]]:
    """Base and novel classes of a fold, ascending: contiguous groups, or with use_split_coco every folds-th COCO class.

    UserError for a fold that does not exist.
    """
    if not 0 <= split < folds <= num_classes:
        raise UserError(f"split: {split}, with {folds} folds of {num_classes} classes; choose 0 to {folds - 1}")
    if data_set == "coco" and use_split_coco:
        novel = list(range(split + 1, num_classes + 1, folds))
    else:
        size, larger = divmod(num_classes, folds)  # the first `larger` groups have one class more
        start = split * size + min(split, larger)
        novel = list(range(start + 1, start + 1 + size + (split < larger)))
    return [class_id for class_id in range(1, num_classes + 1) if class_id not in novel], novel


def config_classes(cfg: Config, mode: Mode) -> list[int]:
    """The classes wanted in a mode, ascending: base classes for training, novel classes for validation and testing."""
    base, novel = fold_classes(cfg.data_set, cfg.split, cfg.num_classes, cfg.folds, cfg.use_split_coco)
    return base if mode == "train" else novel


def class_names(cfg: Config) -> dict[int, str]:
    """Name of every class 1..num_classes; UserError when the class file is absent, malformed or of other classes."""
    if cfg.class_file is None and cfg.data_set in ("pascal", "coco"):
        names = dict(enumerate(PASCAL_CLASSES if cfg.data_set == "pascal" else COCO_CLASSES, 1))
        source = f"data_set {cfg.data_set}"
    else:
        path = locate(Path(cfg.data_root), cfg.class_file or "classes.txt")
        names, source = _read_class_file(path), str(path)
    if list(names) != list(range(1, cfg.num_classes + 1)):
        listed = _span(list(names))
        raise UserError(f"num_classes: {cfg.num_classes}, but {source} has classes {listed}; make them agree")
    return names


def locate(root: Path, path: str | Path) -> Path:
    """A path of the config: relative to the working directory where that exists, else to the data root."""
    return Path(path) if Path(path).exists() else root / path


def read_list(path: Path) -> list[Pair]:
    """The `image mask` pairs of a list file in order; UserError names a line that is malformed or repeats an image."""
    pairs: dict[str, str] = {}
    for number, line in enumerate(_read_text(path, "list file").splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2:
            raise UserError(f"{path}:{number}: not `image mask`, two paths without spaces: {line.strip()!r}")
        image, mask = fields
        if image in pairs:
            raise UserError(f"{path}:{number}: {image} is listed twice; remove one of the lines")
        pairs[image] = mask
    if not pairs:
        raise UserError(f"{path}: the list file is empty; it needs one `image mask` pair a line")
    return list(pairs.items())


def list_files(cfg: Config, mode: Mode) -> Files:
    """Image and mask file of every image in a mode's list, in list order; UserError names an image that is missing."""
    root = _data_root(cfg)
    path = locate(root, cfg.train_list if mode == "train" else cfg.val_list)
    return _files(root, read_list(path), path)


def load_index(cfg: Config, mode: Mode) -> tuple[ImageIndex, Files]:
    """Index of the fold's training or validation images, and the files of each; scans masks that are new or changed.

    Validation keeps every image where a novel class counts; training keeps those whose classes are all base classes and
    where at least one counts. A class counts from area_threshold pixels. With released_lists, what counts is read from
    there. UserError names whatever is missing or malformed.
    """
    root, names = _data_root(cfg), class_names(cfg)
    wanted = config_classes(cfg, mode)
    if cfg.released_lists is not None:
        folder = locate(root, cfg.released_lists) / mode
        path = folder / f"data_list_{cfg.split}.txt"
        pairs, by_class = _read_released(root, path, folder / f"sub_class_file_list_{cfg.split}.txt", wanted)
        counts = _scan(root, pairs, path, names)
        index = _index_released(pairs, by_class, counts)
    else:
        path = locate(root, cfg.train_list if mode == "train" else cfg.val_list)
        pairs = read_list(path)
        counts = _scan(root, pairs, path, names)
        index = _select(pairs, counts, wanted, cfg.area_threshold, only_wanted=mode == "train")
    if not index.images:
        raise UserError(f"{path}: no image for classes {_span(wanted)}; check split, num_classes and area_threshold")
    return index, _files(root, [pair for pair in pairs if pair[0] in index.classes], path)


def _select(
    pairs: Sequence[Pair], counts: dict[str, Counts], wanted: list[int], threshold: int, only_wanted: bool
) -> ImageIndex:
    index = ImageIndex([], {}, {class_id: [] for class_id in wanted})
    for image, mask in pairs:
        present = counts[mask]
        counting = [class_id for class_id in wanted if present.get(class_id, 0) >= threshold and class_id in present]
        if not counting or (only_wanted and not set(present) <= set(wanted)):
            continue
        index.images.append(image)
        index.classes[image] = sorted(present)
        for class_id in counting:
            index.by_class[class_id].append(image)
    return index


def _index_released(pairs: Sequence[Pair], by_class: dict[int, list[str]], counts: dict[str, Counts]) -> ImageIndex:
    classes = {image: sorted(counts[mask]) for image, mask in pairs}
    return ImageIndex([image for image, _ in pairs], classes, by_class)


def _scan(root: Path, pairs: Sequence[Pair], path: Path, names: dict[int, str]) -> dict[str, Counts]:
    """Counts of every mask of the pairs, all of known classes."""
    counts = scan_masks(root, [mask for _, mask in pairs], path)
    for mask, present in counts.items():
        if unknown := set(present) - set(names):
            raise UserError(
                f"{root / mask}: holds class {min(unknown)}, but num_classes is {len(names)}; correct either"
            )
    return counts


def _data_root(cfg: Config) -> Path:
    root = Path(cfg.data_root)
    if not root.is_dir():
        raise UserError(f"data_root: {root} is no folder; put the data set there or set data_root")
    return root


def _files(root: Path, pairs: Sequence[Pair], path: Path) -> Files:
    """Files of the pairs, after one look into each folder of images: on network disks, one per image takes minutes."""
    folders: dict[str, set[str]] = defaultdict(set)
    for image, _ in pairs:
        folder, name = os.path.split(image)
        if folder not in folders and (root / folder).is_dir():
            folders[folder] = set(os.listdir(root / folder))
        if name not in folders[folder]:
            raise UserError(f"{root / image}: no such image, named in {path}; check the list and data_root")
    return {image: (root / image, root / mask) for image, mask in pairs}


def _read_released(
    root: Path, list_path: Path, class_path: Path, wanted: list[int]
) -> tuple[list[Pair], dict[int, list[str]]]:
    """Pairs and by_class of the released index format, its paths re-rooted to the data root."""
    pairs = read_list(list_path)
    try:
        content = ast.literal_eval(_read_text(class_path, "class list"))
        listed = {int(key): [(str(image), str(mask)) for image, mask in content[key]] for key in sorted(content)}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"{class_path}: not a dict {{class: [(image, mask), ...]}}; fetch the file again") from None
    if list(listed) != wanted:
        theirs, ours = _span(list(listed)), _span(wanted)
        raise UserError(f"{class_path}: has classes {theirs}, this fold {ours}; check split and use_split_coco")
    prefix = _foreign_prefix(root, pairs[0], list_path)
    pairs = [_reroot(pair, prefix, list_path) for pair in pairs]
    known = {image for image, _ in pairs}
    by_class = {class_id: [_reroot(pair, prefix, class_path)[0] for pair in listed[class_id]] for class_id in wanted}
    for class_id, images in by_class.items():
        if unknown := [image for image in images if image not in known]:
            raise UserError(f"{class_path}: class {class_id} has {unknown[0]}, {list_path} does not; fetch both again")
        if len(set(images)) < len(images):
            raise UserError(f"{class_path}: class {class_id} has an image twice; fetch the file again")
    return pairs, by_class


def _foreign_prefix(root: Path, pair: Pair, path: Path) -> str:
    """The leading folders of a released path that stand for the data root: the fewest whose removal finds the files."""
    folders = pair[0].split("/")[:-1]
    for drop in range(len(folders) + 1):
        prefix = "".join(f"{folder}/" for folder in folders[:drop])
        if pair[1].startswith(prefix) and all((root / name.removeprefix(prefix)).exists() for name in pair):
            return prefix
    raise UserError(f"{path}: {pair[0]} or its mask {pair[1]} is not under data_root {root}; check data_root")


def _reroot(pair: Pair, prefix: str, path: Path) -> Pair:
    if not all(name.startswith(prefix) for name in pair):
        raise UserError(f"{path}: {' '.join(pair)}: do not begin with {prefix} as others do; fetch the file again")
    return pair[0].removeprefix(prefix), pair[1].removeprefix(prefix)


def _read_class_file(path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, line in enumerate(_read_text(path, "class file").splitlines(), 1):
        index, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if not index.isdecimal() or not name.strip() or int(index) in names:
            raise UserError(f"{path}:{number}: not `index name`, each index once, as in `1 bird`: {line.strip()!r}")
        names[int(index)] = name.strip()
    return dict(sorted(names.items()))


def _read_text(path: Path, kind: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: no readable {kind} there; check the path in the config") from None


def _span(classes: list[int]) -> str:
    if classes and classes == list(range(classes[0], classes[-1] + 1)):
        return f"{classes[0]}..{classes[-1]}"
    return ", ".join(map(str, classes)) or "none"

"""Reads list files: `image mask` pairs, `index name` classes, and the released index format."""

import ast
from pathlib import Path

from util.errors import UserError

Pair = tuple[str, str]  # image, mask: paths relative to the data root


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


def read_class_file(path: Path) -> dict[int, str]:
    """The `index name` lines of a class file, ascending; UserError names a line that is none."""
    names: dict[int, str] = {}
    for number, line in enumerate(_read_text(path, "class file").splitlines(), 1):
        index, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if not index.isdecimal() or not name.strip() or int(index) in names:
            raise UserError(f"{path}:{number}: not `index name`, each index once, as in `1 bird`: {line.strip()!r}")
        names[int(index)] = name.strip()
    return dict(sorted(names.items()))


def read_released(
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
        theirs, ours = span(list(listed)), span(wanted)
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


def _read_text(path: Path, kind: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: no readable {kind} there; check the path in the config") from None


def span(classes: list[int]) -> str:
    """Class numbers for people: 1..5, or one by one."""
    if classes and classes == list(range(classes[0], classes[-1] + 1)):
        return f"{classes[0]}..{classes[-1]}"
    return ", ".join(map(str, classes)) or "none"

"""Reads list files: `image mask` pairs, `index name` classes, the released index format, and other papers' lists."""

import ast
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from util.errors import UserError, printable
from util.files import numbered_lines, read_text

Pair = tuple[str, str]  # image, mask: paths relative to the data root


def locate(root: Path, path: str | Path) -> Path:
    """A path of the config: relative to the working directory where that exists, else to the data root.

    UserError where neither exists and it is one of the released lists, which configs of the field name.
    """
    if not Path(path).exists() and not (root / path).exists() and Path(path).parts[:1] == ("lists",):
        raise UserError(
            f"{path}: neither here nor in {root}; copy the lists/ of the released code here, or take the lists that "
            "`python -m tools.prepare pascal` (coco) makes: --opts train_list ImageSets/train.txt val_list "
            "ImageSets/val.txt"
        )
    return Path(path) if Path(path).exists() else root / path


def read_list(path: Path) -> list[Pair]:
    """The `image mask` pairs of a list file in order; UserError names a line that is malformed or repeats an image."""
    pairs: dict[str, str] = {}
    for number, line in numbered_lines(path, "list file"):
        fields = line.replace("\\", "/").split()
        if len(fields) != 2:
            raise UserError(f"{path}:{number}: not `image mask`, two paths without spaces: {line!r}")
        image, mask = fields
        if image in pairs:
            raise UserError(f"{path}:{number}: {image} is listed twice; remove one of the lines")
        pairs[image] = mask
    if not pairs:
        raise UserError(f"{path}: the list file is empty; it needs one `image mask` pair a line")
    return list(pairs.items())


def read_class_file(path: Path) -> dict[int, str]:
    """The `index name` lines of a class file, ascending; UserError names a line that is none or repeats another."""
    names: dict[int, str] = {}
    for number, line in numbered_lines(path, "class file"):
        index, _, name = line.replace("\t", " ").partition(" ")
        name = name.strip()
        if not re.fullmatch(r"[0-9]{1,9}", index) or not name or printable(name) != name or int(index) in names:
            raise UserError(f"{path}:{number}: not `index name`, each index once, as in `1 bird`: {line!r}")
        if name in names.values():
            raise UserError(f"{path}:{number}: the name {name} is there twice; give each class a name of its own")
        names[int(index)] = name
    return dict(sorted(names.items()))


def class_lines(names: Mapping[int, str]) -> str:
    """What `read_class_file` reads."""
    return "".join(f"{index} {name}\n" for index, name in names.items())


def read_released(
    root: Path, list_path: Path, class_path: Path, wanted: list[int]
) -> tuple[list[Pair], dict[int, list[str]]]:
    """Pairs and by_class of the released index format, its paths re-rooted to the data root."""
    pairs = read_list(list_path)
    try:
        content = ast.literal_eval(read_text(class_path, "class list"))
        listed = {int(key): [(str(image), str(mask)) for image, mask in content[key]] for key in sorted(content)}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"{class_path}: not a dict {{class: [(image, mask), ...]}}; fetch the file again") from None
    if list(listed) != wanted:
        theirs, ours = span(list(listed)), span(wanted)
        raise UserError(f"{class_path}: has classes {theirs}, this fold {ours}; check split and use_split_coco")
    prefix = _foreign_prefix(root, pairs[0], list_path)

    def reroot(path: Path, pair: Pair) -> Pair:
        if not all(name.startswith(prefix) for name in pair):
            raise UserError(f"{path}: {' '.join(pair)}: do not begin with {prefix} as others do; fetch the file again")
        return pair[0].removeprefix(prefix), pair[1].removeprefix(prefix)

    pairs = [reroot(list_path, pair) for pair in pairs]
    known = {image for image, _ in pairs}
    by_class = {class_id: [reroot(class_path, pair)[0] for pair in listed[class_id]] for class_id in wanted}
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


def span(classes: list[int]) -> str:
    """Class numbers for people: 1..5, or one by one."""
    if classes and classes == list(range(classes[0], classes[-1] + 1)):
        return f"{classes[0]}..{classes[-1]}"
    return ", ".join(map(str, classes)) or "none"


def find_list(folder: Path, *names: str) -> Path:
    """The first of the names that is a file of the folder; UserError that says what was looked for."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    wanted = " or ".join(names)
    raise UserError(
        f"{folder}: no list {wanted}; set lists, or fetch it: python -m tools.prepare lists NAME --download"
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty."""
    return [line for _, line in numbered_lines(path, "list")]


def read_labelled(path: Path) -> list[tuple[str, int]]:
    """Name and class of lines `name__class`, `name class` or `class name name ...`; UserError names any other."""
    lines = []
    for line in read_lines(path):
        single, several = re.fullmatch(r"(\S+?)(?:__| +)(\d+)", line), re.fullmatch(r"(\d+)((?: +\S+)+)", line)
        if single:
            lines.append((single[1], int(single[2])))
        elif several:
            lines += [(name, int(several[1])) for name in several[2].split()]
        else:
            raise UserError(f"{path}: {line!r} is neither `name__class` nor `name class`; fetch the list again")
    return lines


def read_class_lists(path: Path) -> dict[int, list[str]]:
    """The names of each class: `class name name ...` lines, or a pickled dict {class from 0: [name, ...]}."""
    if path.suffix == ".pkl":
        content = read_pickle(path)
        try:
            return {int(c) + 1: [str(name) for name in names] for c, names in content.items()}
        except (AttributeError, TypeError, ValueError):
            raise UserError(f"{path}: not a dict {{class: [name, ...]}}; fetch the list again") from None
    rows = [line.split() for line in read_lines(path)]
    if wrong := [row[0] for row in rows if not row[0].isdecimal()]:
        raise UserError(f"{path}: {wrong[0]!r} is no class number; lines are `class name name ...`")
    return {int(row[0]): row[1:] for row in rows}


class _PlainUnpickler(pickle.Unpickler):
    """Takes numbers, text, lists and dicts; whatever would have to be imported is refused, so nothing is executed."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_pickle(path: Path) -> Any:
    """What a pickle of plain data holds; UserError for one that is damaged or asks for any class or function."""
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put it there") from None
    except Exception as error:  # a damaged pickle makes the reader fail in any way there is
        raise UserError(f"{path}: not a pickle of plain data ({error}); fetch it again") from None

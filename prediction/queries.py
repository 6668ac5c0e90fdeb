"""Which images are segmented, and which process does which of them."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prediction.settings import SETTINGS, is_ours
from util.errors import UserError, printable
from util.files import numbered_lines
from util.image import SUFFIXES, is_image

LISTING = ".txt"


class Queries(NamedTuple):
    """Images to segment; `files` are paths below `root`, sorted."""

    root: Path
    files: list[str]


class Share(NamedTuple):
    """A process's share of all images: number 1 to `total`."""

    number: int
    total: int

    def has(self, file: str) -> bool:
        """Whether an image is in it, by a hash of its name alone."""
        if self.total == 1:
            return True
        digest = hashlib.blake2b(os.fsencode(file), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.total == self.number - 1


def find_queries(patterns: Sequence[str], leave_out: Sequence[Path] = ()) -> Queries:
    """All images below folders, all files that patterns such as `photos/*.jpg` match, all lines of lists (*.txt).

    What is hidden, in one of the folders `leave_out` or in the results of another run does not count, unless the
    pattern itself begins there. Says what else of a folder is left out. The lines of a list are paths from its folder
    and are not looked up. UserError for a pattern without any image.
    """
    unwanted = {path.resolve() for path in leave_out}
    holds_results = cache(lambda folder: Path(folder).resolve() in unwanted or is_ours(Path(folder, SETTINGS)))
    found = []
    for pattern in patterns:
        root, names, others = _matches(pattern, holds_results)
        if others:
            first = printable(os.path.join(root, min(others)))
            what = "files or folders are no images, or results, or links to folders or to nothing"
            print(f"{pattern}: {len(others)} {what}; the first is {first}")
        if not names:
            raise UserError(
                f"{pattern or repr(pattern)}: no images; give a folder, or a pattern in quotes such as 'photos/*.jpg'"
            )
        found.append((os.path.abspath(root), names))
    common = os.path.commonpath([root for root, _ in found])
    starts = ["" if root == common else os.path.relpath(root, common) + os.sep for root, _ in found]
    files = {start + name: None for start, (_, names) in zip(starts, found, strict=True) for name in names}
    return Queries(Path(common), sorted(files))


def _matches(pattern: str, holds_results: Callable[[str], bool]) -> tuple[str, list[str], list[str]]:
    """The folder that a pattern begins with, below it the images that it means, and what is left out."""
    if os.path.isdir(pattern):
        names, others = list[str](), list[str]()
        for name, is_wanted in _below(pattern, "", holds_results):
            (names if is_wanted else others).append(name)
        return pattern, names, others
    if os.path.isfile(pattern):
        folder, name = os.path.split(pattern)
        return folder, _listed(Path(pattern)) if name.endswith(LISTING) else [name], []
    root, parts = "", list(Path(pattern).parts)
    while len(parts) > 1 and os.path.isdir(os.path.join(root, parts[0])):
        root = os.path.join(root, parts.pop(0))
    rest = os.path.join("", *parts) + "/" * pattern.endswith("/")
    matched = glob.glob(rest, root_dir=root or None, recursive=True)
    files = [os.path.normpath(name) for name in matched if os.path.isfile(os.path.join(root, name))]
    parents = {name: [str(parent) for parent in Path(name).parents][:-1] for name in files}
    others = [name for name in matched if not os.path.exists(os.path.join(root, name))]
    others += [name for name in files if any(holds_results(os.path.join(root, parent)) for parent in parents[name])]
    return root, sorted({*files} - {*others}), others


def _below(folder: str, start: str, holds_results: Callable[[str], bool]) -> Iterator[tuple[str, bool]]:
    """Files below a folder, with `start` before their names, and whether they are images.

    What is left out is there too: folders of results, links to folders, and links that lead nowhere.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            name = start + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                suffix = os.path.splitext(entry.name)[1].lower()
                is_wanted = suffix in SUFFIXES or is_image(Path(entry.path))
                if is_wanted or not (entry.name == SETTINGS and is_ours(Path(entry.path))):
                    yield name, is_wanted
            elif entry.is_dir(follow_symlinks=False):
                if holds_results(entry.path):
                    yield name, False
                else:
                    yield from _below(entry.path, name + os.sep, holds_results)
            elif entry.is_symlink():
                yield name, False


def _listed(path: Path) -> list[str]:
    """The paths in a list's lines, from its folder."""
    start = os.path.abspath(path.parent)
    lines = [line for _, line in numbered_lines(path, "list of images")]
    return [os.path.relpath(line, start) if os.path.isabs(line) else os.path.normpath(line) for line in lines]

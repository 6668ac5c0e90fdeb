"""PASCAL-5i and COCO-20i as others have prepared them: images and masks in the layout that this project builds."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset.prepare.archive import SUFFIXES, Archive, Source, extract
from dataset.prepare.files import Pair, raise_if_any, write_pairs


def unpack_prepared(
    source: Source, official: Sequence[Archive], root: Path, layout: str, masks: str, raw: Sequence[str]
) -> bool:
    """Unpack archives of prepared data, of whatever name, into `root`; return whether `root` then is such data.

    That is only asked where nothing is to be downloaded, no official archive is at hand, and `root` holds none of the
    `raw` annotations but some of the `masks`. Of the archives the files of `layout`, a pattern of their paths below
    `root`, are taken at any depth. What is there stays as it is. Raises UserError for a damaged or unsafe archive.
    """
    at_hand = any((source.archives / archive.name).is_file() for archive in official)
    if source.download or at_hand or any((root / name).exists() for name in raw):
        return False
    pattern = re.compile(rf"(?:.*/)?({layout})")

    def destination(member: str) -> Path | None:
        match = pattern.fullmatch(member)
        return root / match[1] if match else None

    for path in sorted(source.archives.glob("*")):
        if path.name.endswith(SUFFIXES):
            extract(path, destination, replace=False)
    return next(root.glob(masks), None) is not None


def write_prepared(root: Path, lists: Mapping[str, list[Pair]]) -> dict[str, list[Pair]]:
    """Write the lists of prepared data; UserError, with nothing written, where an image or mask is missing."""
    files = [root / name for pairs in lists.values() for pair in pairs for name in pair]
    raise_if_any([f"{file} is missing" for file in files if not file.is_file()], "images and masks")
    for part, pairs in lists.items():
        write_pairs(root / "ImageSets" / f"{part}.txt", pairs)
    return dict(lists)

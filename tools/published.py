"""What the repositories of other methods publish, and where it goes."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from tools.released import find_archive, unpack

# Files of BAM's layout at any depth of an archive; a word in front of the name, such as win8_, goes.
LAYOUT = re.compile(
    r"(?:.*/)?(?P<data>pascal|coco)/(?:.*/)?(?P<fold>split[0-3])/(?P<net>resnet50|resnet101|vgg)/(?:.*/)?"
    r"(?:\w*?_)??(?P<name>train5?_epoch_[\d.]+_[\d.]+\.pth)"
)


class Publication(NamedTuple):
    """What one method's authors publish, as published.yaml has it."""

    arch: str
    repository: str
    licence: str
    published: str
    known: str  # names that are known, or how many files there are

    def describe(self) -> str:
        """For people, in lines."""
        licence = f"licence of the repository: {self.licence}"
        return "\n".join([f"{self.arch}: {self.repository} ({licence})", f"  {self.published}", f"  {self.known}"])


TEXT = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
PUBLICATIONS = {method: Publication(**about) for method, about in yaml.safe_load(TEXT).items()}


def unpack_published(method: str, archives: Path, exp: Path) -> int:
    """Unpack an archive `method.tar.gz`, `.tgz`, `.tar` or `.zip` of a folder below `exp`; returns how many files.

    0 where there is no such archive. Files that are there stay as they are. UserError for an archive without any file
    of a known name.
    """
    archive = find_archive(archives, method)
    target = f"{{data}}/{PUBLICATIONS[method].arch}/{{fold}}/{{net}}/snapshot/{{name}}"
    return len(unpack(archive, LAYOUT, exp, target)) if archive else 0

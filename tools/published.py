"""What the repositories of other methods publish, and where it goes.

Repositories and names of files are facts of their READMEs. No address of a file is stated here: those are share links
that change, and are followed in a browser.
"""

import re
from pathlib import Path
from typing import NamedTuple

from dataset.prepare.archive import extract
from tools.released import find_archive
from util.errors import UserError

# Files of BAM's layout at any depth of an archive; a word in front of the name, such as win8_, goes.
LAYOUT = re.compile(
    r"(?:.*/)?(?P<data>pascal|coco)/(?:.*/)?(?P<fold>split[0-3])/(?P<net>resnet50|resnet101|vgg)/(?:.*/)?"
    r"(?:\w*?_)??(?P<name>train5?_epoch_[\d.]+_[\d.]+\.pth)"
)
ONE_FILE = "one file a fold; save it as exp/{pascal,coco}/%s/split{i}/{backbone}/snapshot/best_1shot.pth"


class Publication(NamedTuple):
    """What one method's authors publish."""

    arch: str
    repository: str
    licence: str
    published: str
    known: str  # names that are known, or how many files there are


PUBLICATIONS = {
    "bam": Publication(
        "BAM",
        "https://github.com/chunbolang/BAM",
        "MIT",
        "base learners and networks of both data sets, VGG-16 and ResNet-50, 1 and 5 shots, 4 folds",
        "such as train_epoch_107_0.6897.pth, train5_epoch_47.5_0.4926.pth",
    ),
    "hdmnet": Publication(
        "HDMNet",
        "https://github.com/Pbihao/HDMNet",
        "none",
        "networks of COCO-20i; base learners are BAM's",
        "names are not stated",
    ),
    "pfenet": Publication(
        "PFENet",
        "https://github.com/dvlab-research/PFENet",
        "none",
        "8 networks: ResNet-50 for PASCAL-5i's folds, VGG-16 for COCO-20i's",
        "names are not stated",
    ),
    "sccan": Publication(
        "SCCAN",
        "https://github.com/Sam1224/SCCAN",
        "S-Lab 1.0, no commercial use",
        "exp.zip: networks of both data sets, ResNet-50 and ResNet-101, 1 and 5 shots, 4 folds",
        "such as win8_train_epoch_43_0.6753.pth, whose first word goes",
    ),
    "hsnet": Publication(
        "HSNet",
        "https://github.com/juhongm999/hsnet",
        "none",
        "best_model.pt for PASCAL-5i (VGG-16, ResNet-50, ResNet-101), COCO-20i (ResNets) and FSS-1000",
        ONE_FILE % "HSNet",
    ),
    "dcama": Publication(
        "DCAMA",
        "https://github.com/pawn-sxy/DCAMA",
        "none",
        "networks of COCO-20i",
        ONE_FILE % "DCAMA",
    ),
}


def describe(method: str) -> str:
    """What a method's authors publish, in lines."""
    one = PUBLICATIONS[method]
    licence = f"licence of the repository: {one.licence}"
    return "\n".join([f"{one.arch}: {one.repository} ({licence})", f"  {one.published}", f"  {one.known}"])


def unpack_published(method: str, archives: Path, exp: Path) -> int:
    """Unpack an archive `method.tar.gz`, `.tgz`, `.tar` or `.zip` of a folder below `exp`; returns how many files.

    0 where there is no such archive. Files that are there stay as they are. UserError for an archive without any file
    of a known name.
    """
    archive = find_archive(archives, method)
    if archive is None:
        return 0
    arch = PUBLICATIONS[method].arch

    def destination(member: str) -> Path | None:
        match = LAYOUT.fullmatch(member)
        return match and exp / match["data"] / arch / match["fold"] / match["net"] / "snapshot" / match["name"]

    files = extract(archive, destination, replace=False)
    if not files:
        raise UserError(
            f"{archive}: has no file such as pascal/split0/resnet50/train_epoch_1_0.5.pth; unpack it by hand"
        )
    return len(files)

"""Released weights: fetched, and unpacked to where the configs look for them."""

import re
from pathlib import Path
from typing import NamedTuple

from dataset.prepare.archive import SUFFIXES, extract
from dataset.prepare.download import download, verify_checksum
from util.config import Config
from util.errors import UserError

SHARED = "https://entuedu-my.sharepoint.com/:u:/g/personal/qianxion001_e_ntu_edu_sg"
DATA, FOLD = r"(?:pascal|coco)", r"split[0-3]/(?:resnet50|resnet101|vgg)"
TORCHVISION = {
    "resnet50.pth": "ResNet50",
    "resnet101.pth": "ResNet101",
    "vgg16_bn.pth": "VGG16_BN",
    "vgg16.pth": "VGG16",
}


class Release(NamedTuple):
    """An archive of the authors: its stem, its address, and the names that are taken of it, at any depth."""

    stem: str
    url: str
    known: str


RELEASES = {
    "backbones": Release(
        "initmodel",
        f"{SHARED}/EUHlKdET3mJGie_IjtpzW5kBo45yz0PB2dW9n55Vo5acXw?e=uyuUDX&download=1",
        rf"resnet(?:50|101)_v2\.pth|vgg16_bn\.pth|PSPNet/{DATA}/{FOLD}/best\.pth",
    ),
    "checkpoints": Release(
        "exp",
        f"{SHARED}/EbcNC1Ram0lJozZ2qe624uEBhXNmKrI64CM0uhEPJuxaig?e=iDMvrI&download=1",
        rf"{DATA}/HMNet\w*/{FOLD}/snapshot/train5?_epoch_[\d.]+_[\d.]+\.pth",
    ),
}


def fetch(cfg: Config, kind: str | None, archives: Path, mirror: str | None) -> None:
    """Bring released weights to `initmodel` and `exp`; what is there stays as it is.

    `kind`, of RELEASES or "all", is taken from the folder `archives`, into which it is downloaded (from the folder
    `mirror`, if given) unless it is there; None takes whatever is there. Raises UserError.
    """
    found = {key: archive for key, release in RELEASES.items() if (archive := find_archive(archives, release.stem))}
    if kind is None and not found:
        names = " or ".join(f"{release.stem}.tar.gz" for release in RELEASES.values())
        raise UserError(f"{archives} holds no {names}; put them there, or give --archives DIR or --download")
    for key, release in RELEASES.items():
        if kind in (key, "all") and key not in found:
            found[key] = archives / f"{release.stem}.tar.gz"
            download(f"{mirror.rstrip('/')}/{found[key].name}" if mirror else release.url, found[key])
        if kind in (key, "all", None) and key in found:
            folder = Path(cfg.initmodel if key == "backbones" else cfg.exp)
            files = unpack(found[key], re.compile(rf"(?:.*/)?(?P<name>{release.known})"), folder, "{name}")
            print(f"{found[key]}: {len(files)} files below {folder}; those that were there stay as they are")


def find_archive(folder: Path, stem: str) -> Path | None:
    """The archive of this stem in a folder, if there is one."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def unpack(archive: Path, known: re.Pattern[str], folder: Path, target: str) -> list[Path]:
    """Unpack members of known names to `target` below a folder, in which the name's groups stand in braces.

    Files that are there are not touched. UserError where no member has such a name. Returns the files.
    """

    def destination(member: str) -> Path | None:
        match = known.fullmatch(member)
        return match and folder / target.format(**match.groupdict())

    if files := extract(archive, destination, replace=False):
        return list(files)
    example = "pascal/split0/resnet50/train_epoch_1_0.5.pth"
    raise UserError(f"{archive}: has no file such as {example} (docs/weights.md): is it the right archive?")


def fetch_torchvision(folder: Path, mirror: str | None) -> None:
    """Fetch torchvision's ImageNet weights, whose names end in the first digits of their SHA-256 sums."""
    from torchvision.models import get_model_weights

    for name, model in TORCHVISION.items():
        path, url = folder / name, str(get_model_weights(model.lower()).IMAGENET1K_V1.url)
        if path.is_file():
            print(f"{path} is there")
            continue
        part = folder / url.rsplit("/", 1)[-1]
        download(f"{mirror.rstrip('/')}/{part.name}" if mirror else url, part)
        verify_checksum(part, part.stem.rsplit("-", 1)[-1], "sha256")
        part.replace(path)

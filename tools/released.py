"""Released weights: fetched, and unpacked to where the configs look for them."""

import os
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
            unpack(found[key], release, Path(cfg.initmodel if key == "backbones" else cfg.exp))


def find_archive(folder: Path, stem: str) -> Path | None:
    """The archive of this stem in a folder, if there is one."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def unpack(archive: Path, release: Release, target: Path) -> None:
    """Unpack the known names below `target`; UserError where there is none. Files that are there are not touched."""
    pattern = re.compile(rf"(?:.*/)?({release.known})")
    kept: dict[Path, bool] = {}

    def destination(member: str) -> Path | None:
        if match := pattern.fullmatch(member):
            path = target / match[1]
            kept.setdefault(path, os.path.lexists(path))
            return path
        return None

    files = extract(archive, destination, replace=False)
    if not files:
        raise UserError(f"{archive} has no file of a name as in docs/weights.md: is it the right archive?")
    print(f"{archive}: {len(files)} files below {target}, {sum(kept.values())} of them were there and stay as they are")


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

"""Views: fixed random changes of training images, kept with what a frozen backbone makes of them."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dataset.benchmarks.base import ImageMaskStore
from dataset.transform import Mask
from util.errors import UserError
from util.files import atomic_write

# An image's name, the class that its mask shows, and which change it is; below 0 another class's object is pasted in.
View = tuple[str, int, int]


@dataclass(frozen=True)
class ViewStore:
    """A folder of views, `count` of every image and class; a changed image or mask is another one.

    What is pasted into views is one of `classes`.
    """

    folder: Path
    count: int
    classes: tuple[int, ...] = ()

    def path(self, files: ImageMaskStore, name: str, class_id: int, number: int) -> Path:
        """The file of one view."""
        text = f"{_version(*files[name])}/{class_id}/{number}{self.classes if number < 0 else ''}"
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self.folder / key[:2] / f"{key[2:]}.safetensors"  # few files in one folder

    def read(self, files: ImageMaskStore, name: str, class_id: int, number: int) -> tuple[Tensor, Mask]:
        """The backbone's maps (C, h, w) float32 and the mask (H, W); UserError for a damaged file."""
        path = self.path(files, name, class_id, number)
        try:
            content = load_file(path)
            return content["maps"].float(), content["mask"].numpy()
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it, and it is made again") from error

    def write(self, path: Path, maps: Tensor, mask: Tensor) -> None:
        """Store one view; maps take 16 bits a value."""
        atomic_write(path, save({"maps": maps.half().contiguous(), "mask": mask.to(torch.uint8).contiguous()}))


@cache
def _version(*paths: Path) -> str:
    """What tells these files from others, and from themselves after a change."""
    stats = [(path.resolve(), path.stat()) for path in paths]
    return " ".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)

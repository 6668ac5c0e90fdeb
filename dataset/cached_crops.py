"""Cached crops: fixed random changes of training images, kept with what a frozen backbone makes of them."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dataset.benchmarks.base import ImageMaskStore
from dataset.reading import Mask
from util.errors import UserError
from util.files import atomic_write, file_digest

# An image's name, the class that its mask shows, and which change it is; below 0 another class's object is pasted in.
Crop = tuple[str, int, int]

LARGEST = torch.finfo(torch.float16).max
CROP_FILE = re.compile(r"[0-9a-f]{16}/[0-9a-f]{2}/[0-9a-f]{30}\.safetensors")  # below the folder of all trainings
MAP = "maps."  # what the backbone's maps are called in a file, before their names


@dataclass(frozen=True)
class CropStore:
    """A folder of crops, `count` of every image and class; another content of image or mask is another crop.

    What is pasted into crops is one of `classes`.
    """

    folder: Path
    count: int
    classes: tuple[int, ...] = ()

    def path(self, files: ImageMaskStore, name: str, class_id: int, number: int) -> Path:
        """The file of one crop, known by name and bytes of the image and bytes of its mask, wherever they lie."""
        content = " ".join(file_digest(path) for path in (files[name][0], files.mask_file(name, class_id)))
        text = f"{name} {content}/{class_id}/{number}{self.classes if number < 0 else ''}{files.mask_rule(name)}"
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self.folder / key[:2] / f"{key[2:]}.safetensors"  # few files in one folder

    def read(self, files: ImageMaskStore, name: str, class_id: int, number: int) -> tuple[dict[str, Tensor], Mask]:
        """The backbone's maps (C, h, w) float32 by name and the mask (H, W); UserError for a damaged file."""
        path = self.path(files, name, class_id, number)
        try:
            content = load_file(path)
            mask = content.pop("mask").numpy()
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it, and it is made again") from error
        return {key.removeprefix(MAP): values.float() for key, values in content.items()}, mask

    def write(self, path: Path, maps: Mapping[str, Tensor], mask: Tensor) -> None:
        """Store one crop; maps take 16 bits a value, and values beyond their range become its ends."""
        content = {MAP + name: x.clamp(-LARGEST, LARGEST).half().contiguous() for name, x in maps.items()}
        atomic_write(path, save({**content, "mask": mask.to(torch.uint8).contiguous()}))


def crop_bytes(maps: Mapping[str, Tensor], mask: Tensor) -> int:
    """What the file of one crop takes, about."""
    return sum(2 * x.numel() for x in maps.values()) + mask.numel()


def crop_files(folder: Path) -> list[Path]:
    """All crops in a folder of crops, of whatever training."""
    return [path for path in folder.glob("*/*/*") if CROP_FILE.fullmatch(path.relative_to(folder).as_posix())]

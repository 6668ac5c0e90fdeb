"""Images of any kind as RGB arrays: files, PIL images, arrays, tensors; grey, palette, alpha, 16-bit, EXIF-turned."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from util.errors import UserError

RGB = NDArray[np.uint8]  # an image (h, w, 3)
ImageSource: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Tensor"

MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255  # of ImageNet
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # none that Pillow hands to another program
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class ImageRule(NamedTuple):
    """How images and masks get to a method."""

    # What is tested becomes a square: out of proportion, or in proportion at the top left on black (PFENet, BAM).
    fit: Literal["square", "padded"] = "square"
    # Images are made smaller by sampling, as OpenCV does, or by averaging, as Pillow does.
    resample: Literal["opencv", "antialias"] = "opencv"
    # Training images are changed at random and cropped, or changed and squashed (HDMNet), or squashed as they are.
    augment: Literal["crop", "squash", "none"] = "crop"
    keep_ignored: bool = True  # whether 255 stays in support masks, or becomes background


@contextmanager
def open_image(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """Open an image file with Pillow; whatever goes wrong in the block is a UserError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata in photographs
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # damaged files make Pillow fail in any way there is
        reason = "it is no image" if "cannot identify" in str(error) else f"{error}" or type(error).__name__
        raise UserError(f"{path}: not a readable {what} ({reason}); export it again") from None


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where there is none or nonsense."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image as it is shown."""
    return (image.width, image.height) if orientation(image) in SIDEWAYS else (image.height, image.width)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels of an image as it is shown, from its header alone; UserError as `read_image`."""
    with open_image(path) as image:
        return shown_size(image)


def read_image(source: ImageSource, max_side: int | None = None) -> NDArray[np.uint8]:
    """RGB (h, w, 3) of a file or PIL image, upright as EXIF says, an array (h, w[, 1|3|4]) or a tensor ([1|3|4,] h, w).

    16-bit values keep their upper 8 bits, floating point values are in [0, 1], and what is transparent becomes white.
    A file's image whose longer side exceeds `max_side` is averaged down to it.
    Raises UserError naming the file that is missing, damaged or truncated, or the array's shape.
    """
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
        source = np.moveaxis(source, 0, -1) if source.ndim == 3 else source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pillow(source)
    with open_image(source) as image:
        if max_side is None:
            return _from_pillow(image)
        image.draft(None, (max_side, max_side))  # a JPEG decodes at 1/2, 1/4 or 1/8 as long as that is no smaller
        return _limit_side(_from_pillow(image), max_side)


def resize_image(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear, half-pixel centres, no antialiasing."""
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Nearest neighbour as OpenCV takes it."""
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _limit_side(image: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """The image with its longer side at most `max_side`, averaged so that it does not alias."""
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image
    height, width = (max(round(side * max_side / max(image.shape[:2])), 1) for side in (height, width))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def normalise(image: NDArray[np.float32]) -> Tensor:
    """float32 tensor (3, h, w) of ImageNet's mean and deviation, as the backbones were trained, from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(((image - MEAN) / STD).transpose(2, 0, 1)))


def _from_pillow(image: Image.Image) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # float; 16 bits, in some files given as 32
        values = np.asarray(image)
        return _from_array(values if image.mode == "F" else values.clip(0, 65535).astype(np.uint16))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _from_array(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)) or not values.size:
        raise UserError(f"an image of shape {values.shape}: should be (h, w) or (h, w, 1, 3 or 4 channels)")
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):
            raise UserError(f"an image of {values.dtype} from {values.min()} to {values.max()}: should be in [0, 1]")
        values = np.rint(values * 255)
    elif values.dtype == np.bool_:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = values >> 8
    elif values.min() < 0 or values.max() > 255:
        raise UserError(f"an image of {values.dtype} from {values.min()} to {values.max()}: should be uint8 or uint16")
    pixels = values.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _over_white(pixels)
    return np.ascontiguousarray(np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3)))


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def upright(values: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Stored pixels (h, w) as an EXIF orientation shows them."""
    image = Image.fromarray(values)
    image.getexif()[ExifTags.Base.Orientation] = turn
    return np.array(ImageOps.exif_transpose(image))

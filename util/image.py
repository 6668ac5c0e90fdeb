"""Pictures of any kind as RGB arrays: files, PIL images, arrays, tensors; grey, palette, alpha, 16-bit, EXIF-turned."""

from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from util.errors import UserError
from util.pixels import IGNORE as IGNORE

ImageSource: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Tensor"

MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255  # of ImageNet
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255

SHADES = 32  # more grey values than these are no classes
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for damaged files


def read_image(source: ImageSource, max_side: int | None = None) -> NDArray[np.uint8]:
    """RGB (h, w, 3) of a file or PIL image, upright as EXIF says, an array (h, w[, 1|3|4]) or a tensor ([1|3|4,] h, w).

    16-bit values keep their upper 8 bits, floating point values are in [0, 1], and what is transparent becomes white.
    A file's picture whose longer side exceeds `max_side` is averaged down to it.
    Raises UserError naming the file that is missing, damaged or truncated, or the array's shape.
    """
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
        source = np.moveaxis(source, 0, -1) if source.ndim == 3 else source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pillow(source)
    try:
        with Image.open(source) as image:
            if max_side is None:
                return _from_pillow(image)
            image.draft(None, (max_side, max_side))  # a JPEG decodes at 1/2, 1/4 or 1/8 as long as that is no smaller
            return _limit_side(_from_pillow(image), max_side)
    except FileNotFoundError:
        raise UserError(f"{source}: no such picture") from None
    except UNREADABLE as error:
        raise UserError(f"{source}: not a readable picture ({error}); export it again") from None


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels of a picture as it is shown, from its header alone; UserError as `read_image`."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable picture ({error}); export it again") from None


def read_index(source: ImageSource) -> NDArray[np.uint8]:
    """Class of every pixel (h, w) of a mask, 255 not to be judged: a palette's index or the grey value.

    A mask is binary if 255 or more is its only value besides 0, if it has a single colour on black, and if it has many
    shades (a JPEG, soft edges), of which the brighter half is the object: then it comes back as 0 and 1. Raises
    UserError as `read_image`, and for a mask of several colours without a palette.
    """
    if isinstance(source, str | Path):
        try:
            with Image.open(source) as opened:
                return read_index(opened)
        except FileNotFoundError:
            raise UserError(f"{source}: no such mask") from None
        except UNREADABLE as error:
            raise UserError(f"{source}: not a readable mask ({error}); export it again") from None
    if isinstance(source, Image.Image):
        image = ImageOps.exif_transpose(source)
        if image.mode == "P":
            return _unless_binary(np.asarray(image))
        values = np.asarray(image.convert(image.mode.removesuffix("A")) if image.mode in ("LA", "RGBA") else image)
    elif isinstance(source, Tensor):
        values = source.detach().cpu().numpy()
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    else:
        values = source
    values = _without_colours(values) if values.ndim == 3 else values
    if values.ndim != 2 or not values.size or values.min() < 0:
        raise UserError(f"a mask of shape {values.shape}: should be (h, w) with values from 0")
    if values.dtype.kind == "f":
        return (values > 0.5).astype(np.uint8)
    if len(np.unique(values)) > SHADES:
        return (values > values.max() // 2).astype(np.uint8)
    return _unless_binary(values)


def _without_colours(values: NDArray[Any]) -> NDArray[Any]:
    """The grey values (h, w) of a mask (h, w, channels)."""
    brightest = values.max(axis=2)
    if values.dtype != np.uint8 or (values == brightest[..., None]).all():
        return np.asarray(brightest)
    colours = np.unique(values.astype(np.int32) @ (256 ** np.arange(values.shape[2])))
    if len(colours[colours > 0]) <= 1:
        return brightest > 0
    if len(colours) <= SHADES:
        raise UserError(f"a mask in {len(colours[colours > 0])} colours; save it as an index or grey PNG")
    return np.asarray(brightest)


def _unless_binary(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.max() >= 255 and len(np.unique(values[values > 0])) == 1:
        return (values > 0).astype(np.uint8)
    if values.max() > 255:
        raise UserError(f"a mask with the value {values.max()}: classes are 1 to 254, 255 is ignored")
    return values.astype(np.uint8)


def resize_image(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear, half-pixel centres, no antialiasing."""
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Nearest neighbour as OpenCV takes it."""
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _limit_side(image: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """The picture with its longer side at most `max_side`, averaged so that it does not alias."""
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
        raise UserError(f"a picture of shape {values.shape}: should be (h, w) or (h, w, 1, 3 or 4 channels)")
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):
            raise UserError(f"a picture of {values.dtype} from {values.min()} to {values.max()}: should be in [0, 1]")
        values = np.rint(values * 255)
    elif values.dtype == np.bool_:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = values >> 8
    elif values.min() < 0 or values.max() > 255:
        raise UserError(f"a picture of {values.dtype} from {values.min()} to {values.max()}: should be uint8 or uint16")
    pixels = values.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _over_white(pixels)
    return np.ascontiguousarray(np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3)))


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)

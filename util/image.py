"""Images of any kind as RGB arrays: files, PIL images, arrays, tensors; grey, palette, alpha, 16 bits, EXIF-turned."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torch.utils.data import get_worker_info

from util.errors import UserError

RGB = NDArray[np.uint8]  # an image (h, w, 3)
ImageSource: TypeAlias = str | Path | BinaryIO | Image.Image | NDArray[Any] | Tensor

MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255  # of ImageNet
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255

# What Pillow itself decodes; none that it hands to another program, and no containers of videos or fields
DECODED = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "AVIF", "JPEG2000", "QOI", "ICO", "TGA", "PCX")
Image.init()
FORMATS = tuple(name for name in DECODED if name in Image.OPEN)  # not every Pillow has all of them
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
OTHER_FORMATS = re.compile(r"\.(hei[cf]s?|jxl|svgz?|psd|dng|cr[23]|nef|arw|orf|rw2|raf|eps|exr|hdr|fits?|dcm)", re.I)
BITS, TYPES, ZERO = 258, 339, 262  # tags of TIFF: bits and type of a channel; whether white (0) or black is zero
KIND, COPY, MASK = 254, 1, 4  # the tag of TIFF that says what a page is, and its bits
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras, microscopes and scanners use of 16
SAMPLED = 100  # images of a folder in which the highest value is looked for
VARIED = 0.5  # of the pixels neither opaque nor transparent, from which on a TIFF's alpha is another channel

for _order, _big in ((b"II", ""), (b"MM", "B")):  # grey TIFF that Pillow can decode but does not know
    for _zero in (0, 1):
        for _type, _bits, _mode, _raw in (
            (1, 16, f"I;16{_big}", f"I;16{_big}"),
            (1, 32, "I", f"I;32{_big}"),
            (2, 16, "I", f"I;16{_big}S"),
            (2, 32, "I", f"I;32{_big}S"),
            (3, 64, "F", f"F;64{_big}F"),
        ):
            TiffImagePlugin.OPEN_INFO.setdefault((_order, _zero, (_type,), 1, (_bits,), ()), (_mode, _raw))


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image, read here or not, or is one by its content; hidden files are not."""
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in SUFFIXES or OTHER_FORMATS.fullmatch(path.suffix):
        return True
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # what is no image makes Pillow fail in any way there is
        return False


class ImageRule(NamedTuple):
    """How images and masks get to a method."""

    # What is tested becomes a square: out of proportion, or in proportion at the top left on black (PFENet, BAM).
    fit: Literal["square", "padded"] = "square"
    # Images are made smaller by sampling, as OpenCV does, or by averaging, as Pillow does.
    resample: Literal["opencv", "antialias"] = "opencv"
    # Training images are changed at random and cropped, or changed and squashed (HDMNet), or squashed as they are.
    augment: Literal["crop", "squash", "none"] = "crop"
    keep_ignored: bool = True  # whether 255 stays in support masks, or becomes background
    padding: Literal["black", "mean"] = "black"  # the colour around images in proportion


@contextmanager
def open_image(source: str | Path | BinaryIO, what: str = "image") -> Iterator[Image.Image]:
    """Open an image file with Pillow; whatever goes wrong in the block is a UserError that names the file."""
    name = source if isinstance(source, str | Path) else getattr(source, "name", "the open file")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of odd metadata in photographs
            with Image.open(source, formats=FORMATS) as image:
                yield image
    except FileNotFoundError:
        raise UserError(f"{name}: no such {what}") from None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Image.DecompressionBombError:
        remedy = "make it smaller; of images to segment predict.py --tile cuts TIFF files"
        raise UserError(
            f"{name}: has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels; {remedy}"
        ) from None
    except Exception as error:  # damaged files make Pillow fail in any way there is
        reason = f"{error}" or type(error).__name__
        if "cannot identify" in reason:
            suffix = Path(str(name)).suffix
            if OTHER_FORMATS.fullmatch(suffix):
                raise UserError(f"{name}: images of this format are not read; save it as PNG or JPEG") from None
            reason = "it is no image" + " or an unusual TIFF" * suffix.lower().startswith(".tif")
        raise UserError(f"{name}: not a readable {what} ({reason}); export it again") from None


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where there is none or nonsense."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image as it is shown; those of a TIFF's header Pillow has turned already."""
    turned = orientation(image) in SIDEWAYS and not isinstance(image, TiffImageFile)
    return (image.width, image.height) if turned else (image.height, image.width)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels of an image as it is shown, from its header alone; UserError as `read_image`."""
    with open_image(path) as image:
        return shown_size(image)


def read_image(source: ImageSource, max_side: int | None = None, max_megapixels: float = inf) -> RGB:
    """RGB (h, w, 3) of a file or PIL image, upright as EXIF says, an array (h, w[, 1|3|4]) or a tensor ([1|3|4,] h, w).

    Of integers of more than 8 bits the 8, 10, 12, 14 or 16 bits become 8 that hold the largest value of all images of
    the file's folder; where there are negative values, the range from the lowest to the highest; a warning says so.
    Floating point values are in [0, 1], and what is transparent becomes white. A file's image whose longer side exceeds
    `max_side` is averaged down to it. Of several pages or frames the first is taken, which one warning says of a
    folder. Raises UserError naming the file that is missing, damaged or truncated or has more than `max_megapixels`,
    or the array's shape.
    """
    if isinstance(source, Tensor | np.ndarray):
        return _from_array(as_array(source))
    if isinstance(source, Image.Image):
        return _from_pillow(source)
    if source is None:
        raise UserError("None instead of an image; give a file, a PIL image, an array or a tensor")
    with open_image(source) as image:
        if (megapixels := image.width * image.height / 1e6) > max_megapixels:
            size = f"{image.width}x{image.height} are {megapixels:.0f} megapixels"
            raise UserError(f"{size}, and at most {max_megapixels:g} are taken; make it smaller")
        if _has_more(image):
            what = "of several pages or frames the first is taken (predict.py --page N takes another one of TIFF files)"
            _warn_once(Path(source).absolute().parent if isinstance(source, str | Path) else None, what)
        if max_side is None:
            return _from_pillow(image)
        image.draft(None, (max_side, max_side))  # a JPEG decodes at 1/2, 1/4 or 1/8 as long as that is no smaller
        return _limit_side(_from_pillow(image), max_side)


def _has_more(image: Image.Image) -> bool:
    """Whether a file has frames or pages beside the first; a JPEG's smaller copies, a TIFF's and its mask are none."""
    try:
        if image.format == "MPO" or not getattr(image, "is_animated", False):
            return False
        if not isinstance(image, TiffImageFile):
            return True
        image.seek(1)
        return not image.tag_v2.get(KIND, 0) & (COPY | MASK)
    except Exception:  # a damaged one, or one that Pillow does not know
        return True
    finally:
        image.seek(0)


def as_array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    """An array, or a tensor ([channels,] h, w) as an array (h, w[, channels])."""
    if not isinstance(values, Tensor):
        return values
    array = (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


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
    planes = image.transpose(2, 0, 1).copy()  # each by itself, as NumPy is slow along an axis of three
    planes -= MEAN[:, None, None]
    planes /= STD[:, None, None]
    return torch.from_numpy(planes)


def deep_values(image: Image.Image) -> NDArray[Any] | None:
    """The values (h, w[, 3 or 4]) of a PNG or TIFF file that is not of 8 bits a channel, upright; None for any other.

    Of such colours Pillow keeps the upper 8 bits, whatever they hold; it only sees to it that the file is whole.
    """
    if not isinstance(image, PngImageFile | TiffImageFile) or not image.tile or image.fp is None:
        return None
    if isinstance(image, PngImageFile):
        deep = "16B" in str(image.tile[0].args)
    else:
        bits, types = image.tag_v2.get(BITS, (1,)), image.tag_v2.get(TYPES, (1,))
        deep = image.tag_v2.get(ZERO) in (0, 1, 2) and (max(bits) > 8 or max(types) > 1)
    if not deep:
        if isinstance(image, TiffImageFile) and orientation(image) in SIDEWAYS:
            image.filename = ""  # else Pillow maps an uncompressed file into memory, and as if it were not turned
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    data = np.frombuffer(image.fp.read(), np.uint8)
    image.fp.seek(position)
    image.load()
    turn = orientation(image)  # of a TIFF 1 by now, as both libraries turn it
    values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None:
        return upright(np.asarray(image), turn)
    has_alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
    return upright(values if values.ndim == 2 else values[..., [2, 1, 0, 3][: 3 + has_alpha]], turn)


def upright(values: NDArray[Any], turn: int) -> NDArray[Any]:
    """Stored pixels (h, w[, channels]) as an EXIF orientation shows them."""
    values = values.swapaxes(0, 1) if turn in SIDEWAYS else values
    rows, columns = (
        slice(None, None, -1 if turn in (3, 4, 7, 8) else 1),
        slice(None, None, -1 if turn in (2, 3, 6, 7) else 1),
    )
    return np.ascontiguousarray(values[rows, columns])


def _from_pillow(image: Image.Image) -> RGB:
    file = getattr(image, "filename", "")
    white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(ZERO) == 0
    values = deep_values(image)
    if values is None:
        white_is_zero, is_tiff = False, isinstance(image, TiffImageFile)  # Pillow sees to it itself
        image = ImageOps.exif_transpose(image)
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            return _over_white(np.asarray(image.convert("RGBA")), is_tiff)
        if image.mode != "F" and not image.mode.startswith("I"):
            return np.asarray(image.convert("RGB"))
        values = np.asarray(image)  # floating point, or 16 bits, in some files given as 32
    pixels = _from_array(values, Path(file).absolute().parent if file else None, isinstance(image, TiffImageFile))
    return np.subtract(255, pixels, dtype=np.uint8) if white_is_zero else pixels


def _from_array(values: NDArray[Any], folder: Path | None = None, is_tiff: bool = False) -> RGB:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)) or not values.size:
        raise UserError(f"an image of shape {values.shape}: should be (h, w) or (h, w, 1, 3 or 4 channels)")
    if values.dtype.kind not in "fiub":
        raise UserError(f"an image of {values.dtype}: should be integers or floating point")
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):
            raise UserError(f"an image of {values.dtype} from {values.min()} to {values.max()}: should be in [0, 1]")
        values = np.rint(values * 255)
    elif values.dtype == np.bool_:
        values = values * np.uint8(255)
    elif values.dtype != np.uint8:
        values = _eight_bits(values, folder)
    pixels = values.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _over_white(pixels, is_tiff)
    return np.ascontiguousarray(np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3)))


def _eight_bits(values: NDArray[Any], folder: Path | None) -> NDArray[Any]:
    """Integers as 0 to 255, alike for all images of a folder; UserError for more than 16 bits."""
    colours = values[..., :3] if values.ndim == 3 else values
    low, high = min(int(colours.min()), 0), int(colours.max())
    if folder is not None and folder.is_dir():
        others = _folder_range(folder, folder.stat().st_mtime_ns)
        low, high = min(low, others[0]), max(high, others[1])
    if high - low >= 1 << 16:
        raise UserError(f"an image of {values.dtype} from {low} to {high}: should be of at most 16 bits")
    bits = next((bits for bits in DEPTHS if high < 1 << bits), 16)
    if low < 0:
        _warn_once(folder, f"values from {low} to {high} become 0 to 255")
        scaled = np.rint((colours.astype(np.float64) - low) * (255 / max(high - low, 1)))
    else:
        if values.dtype.itemsize == 2 or bits > 8:
            _warn_once(
                folder, f"values up to {high} are taken for {bits} bits: 0 to {(1 << bits) - 1} becomes 0 to 255"
            )
        scaled = colours >> (bits - 8)
    if colours is values or values.shape[2] < 4:
        return scaled
    alpha = values[..., 3:].astype(np.float64)
    return np.concatenate([scaled, np.rint(alpha * (255 / max(alpha.max(), 1)))], axis=2)


@lru_cache(maxsize=64)
def _folder_range(folder: Path, _changed: int) -> tuple[int, int]:
    """The lowest value, at most 0, and the highest in a folder's images of more than 8 bits, but for its masks."""
    low = high = 0
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".png", ".tif", ".tiff")]
    for path in files[:: max(1, -(-len(files) // SAMPLED))]:
        try:
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                values = deep_values(image)
        except Exception:  # whoever reads that file is told
            continue
        if values is None or values.dtype.kind == "f" or (values.ndim == 2 and len(np.unique(values)) < 3):
            continue
        low, high = min(low, int(values[..., :3].min())), max(high, int(values[..., :3].max()))
    return low, high


@cache
def _warn_once(folder: Path | None, what: str) -> None:
    worker = get_worker_info()
    if worker is None or worker.id == 0:
        warnings.warn(f"{folder}: in all its images {what}" if folder else f"in an image {what}", stacklevel=4)


def _over_white(rgba: NDArray[np.uint8], is_tiff: bool = False) -> RGB:
    """An image on white; the colours alone where the fourth channel of a TIFF is no transparency."""
    between = (rgba[..., 3] > 0) & (rgba[..., 3] < 255)
    if is_tiff and between.mean() > VARIED:
        warnings.warn("a TIFF's fourth channel, called alpha, is no transparency: left out", stacklevel=4)
        return np.ascontiguousarray(rgba[..., :3])
    if rgba[..., 3].mean() < 0.02 * 255:
        warnings.warn("an image that is nearly all transparent, which is shown as white", stacklevel=4)
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)

"""What a mask means: the one place that turns files and arrays of every kind into the class of every pixel."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from util.errors import UserError
from util.image import ImageSource, as_array, deep_values, open_image
from util.pixels import IGNORE, MaskKind

SHADES = 32  # more values than these are no classes
EDGES = 0.2  # of a mask's pixels that may be neither background nor object where it is one object with soft edges
FEW = 8  # colours that a palette of a photograph has more of
UNEVEN = 0.2  # of neighbouring pixels that differ: in masks of VOC at most a tenth, in photographs at least a fifth
LOSSY = ("JPEG", "MPO")
FEW_BITS = re.compile(r"\W*L;([24])")  # how Pillow calls grey images of 2 or 4 bits a pixel
INDEX_MODES = ("1", "L", "P")  # a pixel is the number of its class; a palette only colours it
SETTLE = "save it as an index or grey PNG, or give --mask index, binary or alpha"
BLURRED = "a JPEG is no index mask, its values are blurred; save the mask as PNG"

Label = NDArray[np.uint8]
Colours = Mapping[tuple[int, int, int], int]
Look = Literal["index", "binary", "palette", "colour", "trimap", "soft"]


class InterpretedMask(NamedTuple):
    """What a mask marks, and what it was taken for; `note` says so where it could have been meant otherwise."""

    label: Label  # (h, w): 0 background, 1 to 254 classes, 255 not to be judged; a single object without number is 1
    look: Look
    note: str = ""
    color: tuple[int, ...] = ()  # of an object in one colour, or its odd value


def interpret_mask(
    source: ImageSource, kind: MaskKind | None = None, colours: Colours | None = None
) -> InterpretedMask:
    """Read a mask (h, w): an index or grey image, a palette, colours, or an alpha channel, as EXIF turns it.

    `kind` settles what the values cannot: "index" takes numbers as they are, "binary" takes what is brighter than half
    as the object, "alpha" what is opaque. `colours` (default: PASCAL VOC's) are those of classes. UserError for what
    is missing or damaged, and for what could mean several things.
    """
    if isinstance(source, Image.Image):
        return _of_image(source, kind, colours)
    if isinstance(source, np.ndarray | Tensor):
        source = as_array(source)
        if source.ndim == 3 and source.dtype == np.uint8 and source.shape[2] in (3, 4):
            return _of_image(Image.fromarray(source), kind, colours)
        return _of_values(source[..., 0] if source.ndim == 3 and source.shape[2] == 1 else source, kind)
    with open_image(source, "mask") as image:
        return _of_image(image, kind, colours)


@cache
def voc_colours() -> dict[tuple[int, int, int], int]:
    """The colours of PASCAL VOC's palette and the class of each: class bits 0, 3, 6 are red's highest, and so on."""
    colours = {}
    for value in range(256):
        channels = [sum(((value >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
        colours[(channels[0], channels[1], channels[2])] = value
    return colours


def _of_image(image: Image.Image, kind: MaskKind | None, colours: Colours | None) -> InterpretedMask:
    lossy = image.format in LOSSY
    few_bits = (
        FEW_BITS.match(str(image.tile[0].args)) if isinstance(image, ImageFile.ImageFile) and image.tile else None
    )
    values = deep_values(image)
    if values is not None and values.ndim == 2:
        return _of_values(values, kind)
    if values is not None and values.max() <= IGNORE:
        image = Image.fromarray(values.astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    if few_bits:  # Pillow has spread the class numbers of a grey image over 0 to 255
        scale = np.uint8(IGNORE // ((1 << int(few_bits[1])) - 1))
        image = Image.fromarray(np.asarray(image) // scale)
    if kind == "index":
        return InterpretedMask(_numbers(image, lossy), "index")
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else np.full((1, 1), IGNORE)
    varies = bool((alpha != alpha[0, 0]).any())
    if kind == "alpha":
        if not varies:
            raise UserError("its alpha channel marks nothing; save the mask with one, or leave out --mask alpha")
        return _of_shades(alpha, lossy, halve=True)
    if image.mode == "P":
        index = np.asarray(image)
        if not varies or np.array_equal(alpha == 0, index == 0):  # the background alone is transparent
            return _of_palette(image, index, kind, colours)
    if varies:
        return _of_transparent(np.asarray(image.convert("RGBA")), kind, colours)
    if image.mode in ("LA", "RGBA", "PA"):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return _of_values(np.asarray(image), kind, lossy)
    return _of_colours(np.asarray(image.convert("RGB")), kind, colours, lossy)


def _numbers(image: Image.Image, lossy: bool) -> Label:
    """The pixels of an index image as they are."""
    if image.mode.startswith("I;") or image.mode == "I":
        return _of_wide(np.asarray(image)).astype(np.uint8)
    if image.mode not in INDEX_MODES:
        raise UserError(f"mask holds {image.mode} pixels; masks are 8-bit index PNG files, value = class number")
    if lossy:
        raise UserError(BLURRED)
    return np.asarray(image, np.uint8)


def _of_wide(values: NDArray[Any]) -> NDArray[Any]:
    if values.min() < 0 or values.max() > IGNORE:
        value = values.min() if values.min() < 0 else values.max()
        raise UserError(f"the value {value} is no class; classes are 1 to 254, 255 is ignored")
    return values


def _of_values(values: NDArray[Any], kind: MaskKind | None, lossy: bool = False) -> InterpretedMask:
    """Grey values of any type; floating point ones are probabilities where they are no whole numbers."""
    if values.ndim != 2 or not values.size:
        raise UserError(f"a mask of shape {values.shape}: should be (h, w) with values from 0")
    if values.dtype.kind not in "fiub":
        raise UserError(f"a mask of {values.dtype}: should be integers or floating point")
    if kind == "alpha":
        raise UserError("it has no alpha channel; give --mask index or binary")
    if values.dtype == np.bool_:
        return InterpretedMask(values.astype(np.uint8), "binary")
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= (1 << 16)):
            raise UserError(f"a mask with values from {values.min()} to {values.max()}: should be from 0 to 1")
        if values.max() <= 1:
            return InterpretedMask((values > 0.5).astype(np.uint8), "binary")
        values = np.rint(values).astype(np.int64)
    shades = np.unique(values)
    if shades[-1] > IGNORE and shades[0] >= 0 and len(shades[shades > 0]) == 1 and kind != "index":
        return InterpretedMask(
            (values > 0).astype(np.uint8), "binary", color=() if shades[-1] >= 0xFF00 else (int(shades[-1]),)
        )
    if shades[0] >= 0 and 0xFF00 <= shades[-1] <= 0xFFFF:  # 16 bits
        values = values >> 8
    if kind == "index":
        return InterpretedMask(_of_wide(values).astype(np.uint8), "index")
    return _of_shades(_of_wide(values).astype(np.uint8), lossy, halve=kind == "binary")


def _of_shades(values: NDArray[np.uint8], lossy: bool, halve: bool = False) -> InterpretedMask:
    """Classes, one object, a trimap of 0, 128 and 255, or one object with soft edges, by the values that occur."""
    count = np.bincount(values.ravel(), minlength=256)
    shades = np.flatnonzero(count)
    inner = shades[shades > 0].tolist()
    if len(inner) <= 1 and not lossy:
        if inner == [IGNORE] or (halve and inner):
            return InterpretedMask((values > 0).astype(np.uint8), "binary")
        return InterpretedMask(values, "index")
    if inner in ([127, 255], [128, 255]):
        label = np.select([values == IGNORE, values > 0], [1, IGNORE], 0).astype(np.uint8)
        return InterpretedMask(label, "trimap", "0, 128 and 255 are taken for background, unsure and object")
    top = int(values.max())
    if lossy:  # compression rings: the brightest pixels are brighter than the object
        top = int(np.median(values[values >= max(1, top // 2)])) if top else 0
    label = (values > top // 2).astype(np.uint8)
    if halve:
        return InterpretedMask(label, "binary")
    spread = _spread(values)
    thin = set(inner) - set(np.unique(values[spread == 0]).tolist())
    # Classes of high numbers at the rim of one that is much larger are shades rather.
    heavy = top == IGNORE and len(inner) > 3 and inner[-2] > 128 and 2 * count[IGNORE] > count[1:].sum()
    few = thin >= set(inner[:-1]) and 5 * count[top] > 4 * count[1:].sum()
    if few and top >= 64 and not lossy and (len(inner) > 2 or min(inner) > 128):
        around = cv2.dilate((values == top).astype(np.uint8), np.ones((7, 7)))
        heavy |= bool(around[(values > 0) & (values < top)].mean() > 0.9)
    if not lossy and len(inner) <= SHADES and not heavy and (len(thin) < 3 or 2 * len(thin) <= len(inner)):
        return InterpretedMask(values, "index")
    near = max(8, top // 10 if lossy else 0)
    between = (values > near) & (values < top - near)
    flat = between & (spread <= (12 if lossy else 0))
    if lossy and top < 64:
        raise UserError(BLURRED)
    if top < 64 or between.mean() > EDGES or flat.sum() > max(4, values.size // 100 if lossy else between.sum() // 10):
        raise UserError(f"a mask in {len(inner)} shades, neither classes nor one object; {SETTLE}")
    return InterpretedMask(
        label, "soft", f"{len(inner)} shades are taken for one object with soft edges, cut in the middle"
    )


def _spread(values: NDArray[np.uint8]) -> NDArray[Any]:
    """How far the values around each pixel are apart; inside of areas 0."""
    return cv2.dilate(values, np.ones((3, 3))) - cv2.erode(values, np.ones((3, 3)))


def _of_palette(image: Image.Image, index: Label, kind: MaskKind | None, colours: Colours | None) -> InterpretedMask:
    """A palette's index; but its brightness where the palette is no list of classes but of shades."""
    palette = np.zeros((256, 3), np.int64)
    entries = np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    palette[: len(entries)] = entries
    if colours is not None:
        return _of_colours(palette[index].astype(np.uint8), kind, colours, lossy=False)
    used = np.unique(index)
    shown = palette[used]
    light = shown.sum(1)
    grey = bool((shown == shown[:, :1]).all())
    if kind == "binary" or (grey and len(used) > 2):
        mask = _of_shades(palette[index].max(2).astype(np.uint8), lossy=False, halve=kind == "binary")
        if mask.look == "index" and not np.array_equal(shown[:, 0], used):
            raise UserError(f"a palette of {len(used)} shades of grey, which may be classes or not; {SETTLE}")
        return mask
    darker, brighter = light.argsort(kind="stable")[[0, -1]]
    listed = bool(darker == 0 and used[0] == 0) or bool((shown[:, 0] == used).all())  # dark background, then a class
    if len(used) == 2 and (used[0] == 0 or grey) and not listed:
        if shown[darker].max() > 16:
            raise UserError(f"a palette of the colours {_colour(shown[0])} and {_colour(shown[1])}; {SETTLE}")
        label = (index == used[brighter]).astype(np.uint8)
        return InterpretedMask(label, "palette", "its palette counts by brightness, not by index")
    is_voc = all(_colour(color) in voc_colours() for color in shown)
    if palette[0].any() and (light[(used > 0) & (used < IGNORE)] == 0).any():  # sorted by how often a colour occurs
        if is_voc:
            return _of_colours(palette[index].astype(np.uint8), kind, None, lossy=False)
        raise UserError(f"a palette in which black is not the first colour; {SETTLE}")
    if len(used) > FEW and not is_voc and (np.diff(index) != 0).mean() > UNEVEN:
        raise UserError(f"a palette of {len(used)} colours, scattered as in a photograph; {SETTLE}")
    return InterpretedMask(index, "index")


def _of_transparent(rgba: NDArray[np.uint8], kind: MaskKind | None, colours: Colours | None) -> InterpretedMask:
    """A mask in alpha if what is visible has one colour; else what is transparent is background."""
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    if kind == "binary":
        return _of_shades((rgb.max(2).astype(np.int64) * alpha // 255).astype(np.uint8), lossy=False, halve=True)
    visible = np.unique(rgb[alpha > 0], axis=0)
    if len(visible) == 1:
        mask = _of_shades(alpha, lossy=False)
        if mask.look == "index":
            raise UserError(f"an alpha channel in {len(np.unique(alpha))} shades; {SETTLE}")
        return mask
    hidden = np.unique(rgb[alpha == 0], axis=0)
    if len(visible) > SHADES or len(hidden) > 1 or len(np.unique(alpha)) > 2:
        raise UserError("an image with transparent parts; give --mask alpha if the object is what is opaque")
    return _of_colours(np.where(alpha[..., None] > 0, rgb, 0).astype(np.uint8), kind, colours, lossy=False)


def _of_colours(rgb: NDArray[np.uint8], kind: MaskKind | None, colours: Colours | None, lossy: bool) -> InterpretedMask:
    """The class of every colour; one colour on black is one object."""
    packed = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)  # (h, w)
    found, position = np.unique(packed, return_inverse=True)
    shown = [(value >> 16, value >> 8 & 255, value & 255) for value in found.tolist()]
    brightest = rgb.max(2)
    if kind == "binary":
        return _of_shades(brightest, lossy, halve=True)
    table = voc_colours() if colours is None else colours
    unknown = next((color for color in shown if color not in table), None)
    if unknown is not None:
        if colours is not None:
            raise UserError(f"the colour {unknown} stands for no class; add it to the label map, or correct the mask")
    elif not lossy:
        classes = np.array([table[color] for color in shown], np.uint8)
        return InterpretedMask(classes[position].reshape(packed.shape), "index")
    if (rgb == brightest[..., None]).all():
        return _of_values(brightest, kind, lossy)
    strongest = rgb[brightest == brightest.max()].astype(np.float64).mean(0)
    hue = strongest / strongest.max()
    odd = np.abs(rgb - brightest[..., None] * hue).max(2) > (64 if lossy else 2)
    if lossy:  # a JPEG blurs colours over its edges
        odd &= _spread(brightest) <= 12
    if odd.sum() > (odd.size // 1000 if lossy else 0):  # several hues are no single object
        raise UserError(f"a mask in {len(shown) - (0 in found)} colours; {SETTLE}")
    mask = _of_shades(brightest, lossy)
    if mask.look == "index" and len(shown) - (0 in found) > 1:
        raise UserError(f"a mask in {len(shown) - (0 in found)} colours; {SETTLE}")
    label = (brightest > 0).astype(np.uint8) if mask.look == "index" else mask.label
    look: Look = "colour" if mask.look in ("index", "binary") else mask.look
    return InterpretedMask(label, look, mask.note, _colour(strongest))


def _colour(values: NDArray[Any]) -> tuple[int, ...]:
    return tuple(round(float(value)) for value in values)

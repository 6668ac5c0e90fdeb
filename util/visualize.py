"""Drawing: masks over images, legends, and rows of images, in colours that colour-blind readers tell apart.

Images are RGB uint8 (h, w, 3), masks are integers (h, w): 0 background, 1.. classes, 255 not to be judged.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from util.files import atomic_write
from util.image import RGB
from util.pixels import IGNORE

Color = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2008), the most conspicuous on photographs first; class c takes (c - 1) mod 7
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
)
IGNORED: Color = (190, 190, 190)
TRUTH: Color = (255, 255, 255)
HALO: Color = (20, 20, 20)
PAPER: Color = (255, 255, 255)
GAP = 8
RUNS = 3  # zlib's Z_RLE, for which masks are a quarter of the work and no larger


class Tile(NamedTuple):
    """One image of a panel, its title, and what its colours mean."""

    title: str
    image: RGB
    legend: Sequence[tuple[Color, str]] = ()


def class_color(class_id: int) -> Color:
    """Colour of class 1, 2, ..., repeating after seven; grey for 255."""
    return IGNORED if class_id == IGNORE else PALETTE[(class_id - 1) % len(PALETTE)]


def index_palette() -> list[int]:
    """The 768 numbers of a PNG palette: black background, `class_color` for every other index."""
    return [0, 0, 0, *(channel for index in range(1, 256) for channel in class_color(index))]


def draw_contour(image: RGB, region: Any, color: Color) -> None:
    """Outline a region (h, w) of booleans in place: a line of its colour inside a dark one, to show on any ground."""
    width = max(1, round(max(image.shape[:2]) / 300))
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, HALO, width + 2, cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, color, width, cv2.LINE_AA)


def overlay(image: RGB, mask: NDArray[Any], truth: NDArray[Any] | None = None, alpha: float = 0.5) -> RGB:
    """Fill every class of a mask translucently and outline it; outline the classes of `truth` in white.

    Both are scaled to the image, the values kept.
    """
    index = fit_mask(mask, image)
    counts = cv2.calcHist([index], [0], None, [256], [0, 256]).ravel()
    values = [int(value) for value in np.flatnonzero(counts) if value]
    colours = cv2.LUT(cv2.merge([index] * 3), np.array(index_palette(), np.uint8).reshape(1, 256, 3))
    drawn = np.asarray(cv2.copyTo(cv2.addWeighted(image, 1 - alpha, colours, alpha, 0), index, image.copy()), np.uint8)
    for value in values:
        if value != IGNORE:
            draw_contour(drawn, index == value, class_color(value))
    outlined = np.zeros_like(index) if truth is None else fit_mask(truth, image)
    for value in set(np.unique(outlined).tolist()) - {0, IGNORE}:
        draw_contour(drawn, outlined == value, TRUTH)
    return drawn


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """A sans-serif font with most alphabets, which comes with matplotlib."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def fit(image: RGB, height: int, width: int) -> RGB:
    """Scale to fit into height x width, keeping the aspect."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def fit_mask(mask: NDArray[Any], image: RGB) -> NDArray[np.uint8]:
    """Scale a mask to an image's size, the values kept."""
    return np.asarray(cv2.resize(mask.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT))


def mosaic(images: Sequence[RGB], size: int) -> RGB:
    """Images side by side in a near-square grid inside size x size; a single one only scaled to that height."""
    if len(images) == 1:
        return fit(images[0], size, 2 * size)
    columns = ceil(sqrt(len(images)))
    rows = ceil(len(images) / columns)
    cell = (size - (rows - 1) * GAP) // rows
    board = Image.new("RGB", (columns * (cell + GAP) - GAP, size), PAPER)
    for number, image in enumerate(images):
        small = Image.fromarray(fit(image, cell, cell))
        left, top = number % columns * (cell + GAP), number // columns * (cell + GAP)
        board.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
    return np.asarray(board)


def wrap_legend(entries: Sequence[tuple[Color, str]], width: int, size: int) -> list[list[tuple[int, Color, str]]]:
    """Break legend entries into lines of at most `width` pixels; each entry gets the position of its swatch."""
    lines: list[list[tuple[int, Color, str]]] = []
    left = width + 1
    for color, text in entries:
        needed = 2 * size + round(font(size).getlength(text))
        if left + needed > width:
            lines.append([])
            left = 0
        lines[-1].append((left, color, text))
        left += needed + size
    return lines


def draw_tile(tile: Tile, text_size: int = 15) -> Image.Image:
    """A tile as an image of its own: title above, legend below, widened if the text needs it."""
    line = text_size + 8
    widest = [font(text_size).getlength(tile.title)]
    widest += [2 * text_size + font(text_size).getlength(text) for _, text in tile.legend]
    width = max(tile.image.shape[1], ceil(max(widest)))
    lines = wrap_legend(tile.legend, width, text_size)
    top = line if tile.title else 0
    height = tile.image.shape[0]
    board = Image.new("RGB", (width, top + height + line * len(lines)), PAPER)
    board.paste(Image.fromarray(tile.image), ((width - tile.image.shape[1]) // 2, top))
    draw = ImageDraw.Draw(board)
    draw.text((width / 2, line / 2), tile.title, HALO, font(text_size), anchor="mm")
    for row, entries in enumerate(lines):
        middle = top + height + row * line + line / 2
        for left, color, text in entries:
            box = (left + 1, middle - text_size / 2, left + text_size, middle + text_size / 2)
            draw.rectangle(box, fill=color, outline=HALO)
            draw.text((left + 1.5 * text_size, middle), text, HALO, font(text_size), anchor="lm")
    return board


def panel(tiles: Sequence[Tile], height: int = 320) -> RGB:
    """Tiles in a row, each image scaled to the same height in pixels."""
    drawn = [draw_tile(tile._replace(image=fit(tile.image, height, 2 * height))) for tile in tiles]
    width = sum(tile.width for tile in drawn) + GAP * (len(drawn) + 1)
    board = Image.new("RGB", (width, max(tile.height for tile in drawn) + 2 * GAP), PAPER)
    left = GAP
    for tile in drawn:
        board.paste(tile, (left, GAP))
        left += tile.width + GAP
    return np.asarray(board)


def episode_panel(
    supports: Sequence[tuple[RGB, NDArray[Any]]],
    query: RGB,
    truth: NDArray[Any],
    predictions: Mapping[str, tuple[NDArray[Any], float | None]],
    class_name: str,
    height: int = 320,
) -> RGB:
    """One episode: support(s) | query | truth | one prediction per named model, with its mask (h, w) and its IoU."""
    color = class_color(1)
    meaning = [(color, class_name), *([(IGNORED, "ignored")] if (truth == IGNORE).any() else [])]
    query = fit(query, height, 2 * height)
    shots = mosaic([overlay(fit(image, height, 2 * height), mask) for image, mask in supports], height)
    tiles = [
        Tile("support" if len(supports) == 1 else f"{len(supports)} supports", shots, [(color, class_name)]),
        Tile("query", query),
        Tile("truth", overlay(query, truth), meaning),
    ]
    for name, (mask, iou) in predictions.items():
        figure = "no pixel to judge" if iou is None else f"IoU {iou:.3f}"
        legend = [(color, f"{class_name}, {figure}"), (TRUTH, "outline of the truth")]
        tiles.append(Tile(name, overlay(query, mask, truth), legend))
    return panel(tiles, height)


def encode_image(image: RGB, suffix: str = ".png") -> bytes:
    """An image as the bytes of a PNG, JPEG or WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, Image.registered_extensions()[suffix.lower()])
    return buffer.getvalue()


def save_image(path: Path, image: RGB) -> None:
    """Write an image in the format of its suffix, whole or not at all; missing folders are made."""
    atomic_write(path, encode_image(image, path.suffix))


def encode_index(mask: NDArray[np.uint8]) -> bytes:
    """A mask (h, w) as a palette PNG whose pixel values are the classes."""
    image = Image.fromarray(mask)  # without a copy, as large ones take what memory there is
    image.putpalette(index_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_type=RUNS)
    return buffer.getvalue()


def save_index(path: Path, mask: NDArray[np.uint8]) -> None:
    """Write a mask (h, w) as a palette PNG whose pixel values are the classes."""
    atomic_write(path, encode_index(mask))


def heat(values: NDArray[np.floating], image: RGB) -> RGB:
    """A map (f, f) with values in [0, 1] over an image, from dark blue to yellow."""
    large = cv2.resize(values.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap(np.rint(large.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.ascontiguousarray(np.rint(0.8 * colors + 0.2 * image).astype(np.uint8))


def data_url(image: RGB, kind: str = "jpeg") -> str:
    """An image as a URL that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(encode_image(image, f".{kind}")).decode()

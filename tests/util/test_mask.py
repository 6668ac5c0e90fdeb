"""What masks of every kind mean, compared with the object that was drawn."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.toy import generator
from util.errors import UserError
from util.image import upright
from util.mask import interpret_mask, voc_colours


def disc(height: int = 60, width: int = 80) -> np.ndarray:
    """A disc of 0 and 1 somewhere."""
    rng = generator()
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (int(rng.integers(30, 50)), int(rng.integers(25, 35))), int(rng.integers(12, 22)), 1, -1)
    return mask


def soft(mask: np.ndarray, top: int = 255) -> np.ndarray:
    """Edges as drawing programs blend them."""
    large = cv2.resize(mask * np.uint8(255), None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    small = cv2.resize(large, mask.shape[::-1], interpolation=cv2.INTER_AREA)
    return np.rint(small / 255 * top).astype(np.uint8)


def jpeg(values: np.ndarray, quality: int = 85) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def palette(index: np.ndarray, *colors: tuple[int, int, int], transparent: Any = None) -> Image.Image:
    """A PNG with these colours in its palette, as a file has it."""
    image = Image.fromarray(index)
    image.putpalette([channel for color in colors for channel in color])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({} if transparent is None else {"transparency": transparent}))
    return Image.open(buffer)


BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.mark.parametrize("value", [255, 65535, 1, 7, 254])
def test_one_value(value: int) -> None:
    mask = disc()
    values = mask.astype(np.uint16) * value
    read = interpret_mask(Image.fromarray(values if value > 255 else values.astype(np.uint8)))
    assert np.array_equal(read.label, mask if value >= 255 else mask * value) and not read.note
    assert np.array_equal(interpret_mask(Image.fromarray(mask > 0)).label, mask)
    assert np.array_equal(interpret_mask(mask * 0.9).label, mask)


def test_index_masks_stay_what_they_are() -> None:
    rng = generator()
    index = np.zeros((60, 80), np.uint8)
    for value in rng.permutation([*range(1, 20), 255]):
        top, left = rng.integers(0, 50), rng.integers(0, 70)
        index[top : top + rng.integers(4, 20), left : left + rng.integers(4, 20)] = value
    for image in (Image.fromarray(index), palette(index, *voc_colours())):
        read = interpret_mask(image)
        assert read.look == "index" and np.array_equal(read.label, index)
    colors = np.array(list(voc_colours()), np.uint8)[index]
    assert np.array_equal(interpret_mask(Image.fromarray(colors)).label, index)
    assert np.array_equal(interpret_mask(palette(index, *voc_colours(), transparent=0)).label, index)


def test_thin_classes_away_from_a_large_ignored_area_are_no_soft_edges_of_it() -> None:
    for _ in range(20):
        rng, index = generator(), np.zeros((40, 60), np.uint8)
        top, left = rng.integers(0, 10, 2)
        index[top : top + 30, 40 + left :] = 255
        for value, column in ((3, 0), (15, 18)):
            across, along = rng.integers(1, 3), rng.integers(2, 16)
            part = index[:, column : column + 18]
            part = part.T if rng.random() < 0.5 else part
            part[left : left + along, top : top + across] = value
        for image in (Image.fromarray(index), Image.fromarray(index).convert("P")):
            assert np.array_equal(interpret_mask(image).label, index)


@pytest.mark.parametrize("top", [255, 200, 128, 96])
def test_soft_and_lossy_masks_are_one_object(top: int) -> None:
    mask = disc()
    few = soft(mask, top) // 16 * 16
    few[mask > 0] = np.maximum(few[mask > 0], few.max())  # whole inside, few shades
    for values in (soft(mask, top), few) if top == 255 else (soft(mask, top),):
        read = interpret_mask(Image.fromarray(values))
        assert read.look == "soft" and "cut in the middle" in read.note
        assert (read.label != mask).mean() < 0.03
        assert np.array_equal(read.label, values > values.max() // 2)
    for quality in (75, 85, 95):  # compression rings beside the edge, brighter than the object
        read = interpret_mask(jpeg(mask * np.uint8(top), quality))
        assert read.note and (read.label != mask).mean() < 0.01
        for color in ((255, 255, 0), (0, 255, 0), (200, 100, 50)):
            read = interpret_mask(jpeg((mask[..., None] * np.array(color)).astype(np.uint8), quality))
            assert (read.label != mask).mean() < 0.02
    large = cv2.dilate(mask, np.ones((9, 9), np.uint8))
    rim = np.where(cv2.erode(large, np.ones((3, 3), np.uint8)) < large, 254, large * 255).astype(np.uint8)
    assert np.array_equal(interpret_mask(Image.fromarray(rim)).label, large)
    with pytest.raises(UserError, match="a JPEG is no index mask"):
        interpret_mask(jpeg(np.zeros_like(mask)))
    two = np.zeros((60, 80, 3), np.uint8)
    two[5:55, 5:35], two[5:55, 45:75] = (255, 0, 0), (0, 255, 0)
    with pytest.raises(UserError, match="a mask in .* colours"):
        interpret_mask(jpeg(two))
    rgb = Image.merge("RGB", [Image.fromarray(soft(mask))] * 3)
    assert np.array_equal(interpret_mask(rgb).label, soft(mask) > 127)


@pytest.mark.parametrize("middle", [127, 128])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_trimaps(middle: int, mode: str) -> None:
    mask = disc()
    rim = cv2.dilate(mask, np.ones((5, 5))) - mask
    values = mask * np.uint8(255) + rim * np.uint8(middle)
    image: Image.Image = Image.fromarray(values).convert("RGB" if mode == "RGB" else "L")
    if mode == "P":  # optimised: three shades of grey, not their own indices
        image = palette(mask * np.uint8(2) + rim, BLACK, (middle,) * 3, WHITE)
    for kind in (None, "binary"):
        read = interpret_mask(image, kind)
        assert np.array_equal(read.label, mask + rim * np.uint8(255))


def test_palettes_of_two_colours_count_by_brightness() -> None:
    mask = disc()
    for white_first in (palette(1 - mask, WHITE, BLACK), Image.fromarray(mask * np.uint8(255)).quantize(2)):
        assert np.array_equal(interpret_mask(white_first).label, mask)
    assert interpret_mask(palette(1 - mask, WHITE, BLACK)).note
    assert np.array_equal(interpret_mask(palette(1 - mask, (250, 200, 0), BLACK)).label, mask)
    assert np.array_equal(interpret_mask(palette(mask + np.uint8(1), (9, 9, 9), BLACK, WHITE)).label, mask)
    assert np.array_equal(interpret_mask(palette(mask, BLACK, WHITE)).label, mask)
    assert np.array_equal(interpret_mask(palette(mask * np.uint8(3), BLACK, BLACK, BLACK, (0, 9, 99))).label, mask * 3)
    with pytest.raises(UserError, match="a palette of the colours .*--mask"):
        interpret_mask(palette(mask, WHITE, (200, 30, 30)))
    assert np.array_equal(interpret_mask(palette(mask, WHITE, (200, 30, 30)), "index").label, mask)
    with pytest.raises(UserError, match="black is not the first colour"):
        third = np.pad(mask[:-1], ((1, 0), (0, 0)), constant_values=2)  # a line of another class on top
        interpret_mask(palette(third, (200, 30, 30), BLACK, (7, 8, 90)))
    two = disc() | disc() * np.uint8(2)
    order = np.array([2, 0, 1, 3], np.uint8)[two]  # colours of VOC, most frequent first
    voc = list(voc_colours())
    assert np.array_equal(interpret_mask(palette(order, voc[1], voc[2], voc[0], voc[3])).label, two)


def test_alpha() -> None:
    mask = disc()
    alpha = mask * np.uint8(255)
    white = np.dstack([np.full((60, 80, 3), 255, np.uint8), alpha])
    drawn = np.dstack([alpha, alpha, alpha, alpha])
    black = np.dstack([np.zeros((60, 80, 3), np.uint8), alpha])
    for rgba in (white, drawn, black):
        assert np.array_equal(interpret_mask(Image.fromarray(rgba)).label, mask)
        assert np.array_equal(interpret_mask(rgba).label, mask)
    edges = np.dstack([np.full((60, 80, 3), 255, np.uint8), soft(mask)])
    assert np.array_equal(interpret_mask(Image.fromarray(edges)).label, soft(mask) > 127)
    opaque = np.dstack([alpha, alpha, alpha, np.full_like(alpha, 255)])
    assert np.array_equal(interpret_mask(Image.fromarray(opaque)).label, mask)
    photograph = np.dstack([generator().integers(0, 256, (60, 80, 3), dtype=np.uint8), alpha])
    with pytest.raises(UserError, match="transparent parts; give --mask alpha"):
        interpret_mask(Image.fromarray(photograph))
    assert np.array_equal(interpret_mask(Image.fromarray(photograph), "alpha").label, mask)
    with pytest.raises(UserError, match="alpha channel marks nothing"):
        interpret_mask(Image.fromarray(opaque), "alpha")
    index = palette(mask * np.uint8(7), *voc_colours(), transparent=7)  # what is transparent is visible elsewhere
    assert set(np.unique(interpret_mask(index).label)) <= {0, 1}


def test_what_is_no_mask(tmp_path: Path) -> None:
    rng = generator()
    photograph = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    grey = cv2.resize(rng.integers(0, 256, (6, 8), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
    two = np.where(disc()[..., None] > 0, (255, 0, 0), (0, 255, 0)).astype(np.uint8)
    classes = np.zeros((60, 80), np.uint8)
    classes[10:50, 5:30], classes[10:50, 40:70] = 100, 200
    for values in (photograph, grey, two):
        with pytest.raises(UserError, match="--mask"):
            interpret_mask(Image.fromarray(values))
    for colors in (16, 256):
        with pytest.raises(UserError, match=f"a palette of {colors} colours, scattered .*--mask"):
            interpret_mask(Image.fromarray(photograph).quantize(colors))
    with pytest.raises(UserError, match="shades, neither classes nor one object"):
        interpret_mask(jpeg(classes))
    for wide in (np.array([[0, 300, 1000]]), np.array([[0, -1]])):
        with pytest.raises(UserError, match="is no class"):
            interpret_mask(wide)
    with pytest.raises(UserError, match="a JPEG is no index mask"):
        interpret_mask(jpeg(disc()), "index")
    with pytest.raises(UserError, match="mask holds RGB pixels"):
        interpret_mask(Image.fromarray(photograph), "index")
    path = tmp_path / "a.png"
    Image.fromarray(photograph).save(path)
    with pytest.raises(UserError, match=rf"^{path}: a mask in \d+ colours"):
        interpret_mask(path)
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UserError, match="not a readable mask .it is no image"):
        interpret_mask(tmp_path / "script.png")
    assert np.array_equal(interpret_mask(Image.fromarray(grey), "binary").label, grey > grey.max() // 2)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a pixel, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    digits = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    padded = [row.ljust(-(-len(row) // 8) * 8, "0") for row in digits]
    rows = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big") for row in padded)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", [None, "index"])
def test_grey_png_of_few_bits_holds_class_numbers(tmp_path: Path, bits: int, kind: Any) -> None:
    values = np.zeros((12, 15), np.uint8)
    for value in range(1, 1 << bits):  # areas, as masks have them
        values[value % 4 * 3 : value % 4 * 3 + 3, value // 4 * 3 : value // 4 * 3 + 3] = value
    (tmp_path / "a.png").write_bytes(grey_png(values, bits))
    assert np.array_equal(interpret_mask(tmp_path / "a.png", kind).label, values)


@pytest.mark.parametrize("turn", range(1, 9))
def test_masks_are_turned_once(tmp_path: Path, turn: int) -> None:
    """Uncompressed TIFF, 8 and 16 bits; Pillow maps the first into memory."""
    values = np.zeros((12, 15), np.uint8)
    values[2:5, 3:9], values[7:, 1:4] = 1, 2
    expected = upright(values, turn)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.uint16))):
        image.save(tmp_path / "a.tif", tiffinfo={274: turn})
        assert np.array_equal(interpret_mask(tmp_path / "a.tif").label, expected)


def test_masks_of_other_types(tmp_path: Path) -> None:
    values = np.zeros((12, 15), np.uint8)
    values[2:5, 3:9] = 1
    assert np.array_equal(interpret_mask(torch.from_numpy(values).bfloat16()).label, values)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert np.array_equal(interpret_mask(file).label, values)
    with pytest.raises(UserError, match="a mask of <U1"):
        interpret_mask(np.full((3, 3), "a"))

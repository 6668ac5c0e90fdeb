import io
import struct
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from util.errors import UserError
from util.image import image_size, is_image, read_image, upright


def opencv(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def noise(*shape: int, high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng().integers(0, high, shape, dtype=dtype)


def smooth(height: int, width: int) -> np.ndarray:
    """An image that survives JPEG."""
    return cv2.resize(noise(4, 5, 3), (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_files_as_opencv_reads_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth(40, 60)).save(path)
    expected = opencv(path)
    assert np.array_equal(read_image(path), expected) and np.array_equal(read_image(str(path)), expected)
    assert np.array_equal(read_image(Image.open(path)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_opencv_applies_it(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(32, 48)).save(path, exif=exif)
    assert np.array_equal(read_image(path), opencv(path))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_files_keep_their_upper_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    values = noise(20, 30, channels, high=65536, dtype=np.uint16)
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), values[..., ::-1])
    expected = np.broadcast_to(values >> 8, (20, 30, 3))
    assert np.abs(read_image(path).astype(int) - expected).max() <= (channels == 3)  # Pillow may round colours
    assert np.array_equal(read_image(values), expected)


def test_grey_palette_and_binary_files(tmp_path: Path) -> None:
    grey = noise(20, 30)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    colors = noise(20, 30, 3) // 128 * 255
    Image.fromarray(colors).quantize(8).save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), colors)
    binary = grey > 100
    Image.fromarray(binary).save(tmp_path / "binary.png")
    assert np.array_equal(read_image(tmp_path / "binary.png")[..., 1], binary * 255)


def test_transparent_becomes_white(tmp_path: Path) -> None:
    rgba = noise(20, 30, 4)
    rgba[:5, :, 3], rgba[5:10, :, 3] = 0, 255
    path = tmp_path / "a.png"
    Image.fromarray(rgba).save(path)
    pixels = read_image(path)
    assert (pixels[:5] == 255).all() and np.array_equal(pixels[5:10], rgba[5:10, :, :3])
    white = Image.new("RGBA", (30, 20), (255, 255, 255, 255))
    white.alpha_composite(Image.open(path))
    assert np.abs(pixels.astype(int) - np.asarray(white)[..., :3]).max() <= 1
    assert np.array_equal(read_image(rgba), pixels)


def test_arrays_and_tensors_agree() -> None:
    values = noise(20, 30, 3)
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    for same in (values, values / 255, tensor, tensor.float() / 255, values.astype(np.int64)):
        assert np.array_equal(read_image(same), values)
    assert np.array_equal(read_image(tensor[0]), np.repeat(values[..., :1], 3, 2))
    assert np.array_equal(read_image(tensor[:1]), np.repeat(values[..., :1], 3, 2))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for damaged in (path, tmp_path / "absent.png", Path(__file__)):
        with pytest.raises(UserError, match=damaged.name) as caught:
            read_image(damaged)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 20, 30, 3)), np.zeros((20, 30, 2)), np.full((9, 9), 2.5), np.zeros((0, 4))]
)
def test_what_is_no_image(bad: np.ndarray) -> None:
    with pytest.raises(UserError, match="image"):
        read_image(bad)


def grey_tiff(values: np.ndarray, white_is_zero: bool = False, turn: int | None = None) -> bytes:
    """A TIFF file written by hand, so that neither library that reads it has written it."""
    order = {"<": "<", "=": "<", "|": "<", ">": ">"}[values.dtype.byteorder]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8 * values.itemsize), (259, 3, 1), (262, 3, 1 - white_is_zero)]
    tags += [(273, 4, 0), *([(274, 3, turn)] if turn else []), (277, 3, 1), (278, 4, height), (279, 4, values.nbytes)]
    tags.append((339, 3, kind))
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, size, 1)
        + struct.pack(f"{order}{'H' if size == 3 else 'I'}", start if tag == 273 else value).ljust(4, b"\0")
        for tag, size, value in tags
    )
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + entries + bytes(4) + values.tobytes()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_bits_that_a_folder_uses_become_eight(tmp_path: Path, bits: int, channels: int) -> None:
    """A dark image is as dark beside a bright one as it was; and one line says what the values were taken for."""
    bright = noise(8, 9, channels, high=1 << bits, dtype=np.uint16)
    bright[0, 0] = (1 << bits) - 1
    dark = bright // 3
    for name, values in (("bright.png", bright), ("dark.png", dark), ("b.tif", bright)):
        cv2.imwrite(str(tmp_path / name), values[..., ::-1])
    with pytest.warns(UserWarning, match=rf"{tmp_path}: in all its images .* taken for {bits} bits") as caught:
        for name, values in (("dark.png", dark), ("bright.png", bright), ("b.tif", bright)):
            exact = np.broadcast_to(values * 255.0 / ((1 << bits) - 1), (8, 9, 3))
            assert np.abs(read_image(tmp_path / name) - exact).max() <= 1
    assert len(caught) == 1


def test_signed_values_and_white_that_is_zero(tmp_path: Path) -> None:
    for order in "<>":
        signed = noise(6, 7, high=4000, dtype=np.uint16).astype(f"{order}i2") - np.array(1024, f"{order}i2")
        signed[0, :2] = -1024, 2975
        for name in ("signed", "white"):
            (tmp_path / f"{name}{ord(order)}").mkdir()
        file = tmp_path / f"signed{ord(order)}/a.tif"
        file.write_bytes(grey_tiff(signed.astype(f"{order}i2")))
        with pytest.warns(UserWarning, match="values from -1024 to 2975 become 0 to 255"):
            found = read_image(file)[..., 1]
        assert np.abs(found - (signed.astype(float) + 1024) * 255 / 3999).max() <= 1
        folder = tmp_path / f"white{ord(order)}"
        values = noise(6, 7, high=4096, dtype=np.uint16).astype(f"{order}u2")
        values[0, 0] = 4095
        (folder / "a.tif").write_bytes(grey_tiff(values, white_is_zero=True))
        with pytest.warns(UserWarning, match="12 bits"):
            assert np.abs(read_image(folder / "a.tif")[..., 2] - (255 - values * 255.0 / 4095)).max() <= 1


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_floating_point_tiff(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng().random((6, 7)).astype(dtype)
    (tmp_path / "a.tif").write_bytes(grey_tiff(values))
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], np.rint(values * 255))
    (tmp_path / "a.tif").write_bytes(grey_tiff(values * 300 - 1))
    with pytest.raises(UserError, match=r"a.tif: an image of float\d\d from .* should be in \[0, 1\]"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("dtype", ["<u1", "<u2"])
def test_a_tiff_is_turned_once(tmp_path: Path, turn: int, dtype: str) -> None:
    stored = noise(6, 9).astype(dtype)
    (tmp_path / "a.tif").write_bytes(grey_tiff(stored, turn=turn))
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(stored.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(upright(stored, turn), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], expected)
    assert image_size(tmp_path / "a.tif") == image_size(tmp_path / "a.png") == expected.shape


def test_another_channel_that_is_called_alpha(tmp_path: Path) -> None:
    rgba = noise(20, 30, 4)
    Image.fromarray(rgba).save(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="fourth channel"):
        assert np.array_equal(read_image(tmp_path / "a.tif"), rgba[..., :3])
    rgba[..., 3] = noise(20, 30) // 128 * 255  # transparency
    Image.fromarray(rgba).save(tmp_path / "a.tif")
    assert (read_image(tmp_path / "a.tif")[rgba[..., 3] == 0] == 255).all()


def test_what_pillow_decodes_is_an_image_whatever_its_suffix(tmp_path: Path) -> None:
    for suffix, kind in (("jfif", "JPEG"), ("jpe", "JPEG"), ("gif", "GIF"), ("PGM", "PPM"), ("jp2", "JPEG2000")):
        Image.fromarray(smooth(8, 9)).convert("L").save(tmp_path / f"a.{suffix}", kind)
    Image.fromarray(smooth(8, 9)).save(tmp_path / "without", "PNG")
    for path in tmp_path.iterdir():
        assert is_image(path) and read_image(path).shape == (8, 9, 3)
    for name in ("a.HEIC", "b.txt", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"nothing that Pillow knows")
    assert is_image(tmp_path / "a.HEIC") and not is_image(tmp_path / "b.txt")
    assert not is_image(tmp_path / ".hidden.jpg")
    with pytest.raises(UserError, match=r"a.HEIC: images of this format are not read; save it as PNG or JPEG"):
        read_image(tmp_path / "a.HEIC")


def test_of_several_pages_or_frames_the_first_is_taken_and_that_is_said_once(tmp_path: Path) -> None:
    first, *more = (Image.fromarray(noise(40, 60, 3)) for _ in range(3))
    several: dict[str, Any] = {"save_all": True, "append_images": more}
    for name, options in (("a.tif", several), ("a.gif", several), ("a.webp", {**several, "lossless": True})):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(2):
            first.save(folder / f"{number}{folder.suffix}", **options)
        with pytest.warns(
            UserWarning, match=rf"{name}: in all its images of several pages or frames the first"
        ) as told:
            images = [read_image(file) for file in folder.iterdir()]
        assert len(told) == 1 and all(np.abs(image.astype(int) - np.asarray(first)).mean() < 20 for image in images)
    whole = (tmp_path / "a.gif" / "0.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])  # within the second frame
    assert read_image(tmp_path / "cut.gif").shape == (40, 60, 3)
    first.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[first.resize((30, 20))])
    copy = first.resize((30, 20))
    copy.encoderinfo = {"tiffinfo": {254: 1}}  # a smaller copy, as in a pyramid
    first.save(tmp_path / "b.tif", save_all=True, append_images=[copy])
    first.save(tmp_path / "c.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("b.jpg", "b.tif", "c.tif"):
            assert read_image(tmp_path / name).shape == (40, 60, 3)


def test_tensors_and_open_files_of_every_kind() -> None:
    values = noise(20, 30, 3)
    half = torch.from_numpy(values / 255).permute(2, 0, 1).bfloat16()
    assert np.abs(read_image(half).astype(int) - values).max() <= 1
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert np.array_equal(read_image(file), values)
    with pytest.warns(UserWarning, match="8 bits"):
        assert np.array_equal(read_image(values.astype(np.uint16)), values)
    for wrong in (None, io.BytesIO(b"none"), np.full((3, 3), "a"), np.full((3, 3), 1j), np.full((3, 3), 1 << 20)):
        with pytest.raises(UserError):
            read_image(wrong)

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from util.errors import UserError
from util.image import read_image


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
    picture = read_image(path)
    assert (picture[:5] == 255).all() and np.array_equal(picture[5:10], rgba[5:10, :, :3])
    white = Image.new("RGBA", (30, 20), (255, 255, 255, 255))
    white.alpha_composite(Image.open(path))
    assert np.abs(picture.astype(int) - np.asarray(white)[..., :3]).max() <= 1
    assert np.array_equal(read_image(rgba), picture)


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

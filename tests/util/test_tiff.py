"""TIFF files of instruments, written here by rasterio and tifffile."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.toy import generator
from util.errors import UserError
from util.image import read_image
from util.tiff import ImageReader, parse_bands, read_georeference

rasterio = pytest.importorskip("rasterio")
tifffile = pytest.importorskip("tifffile")
PLACE = rasterio.Affine(0.5, 0, 4e5, 0, -0.25, 5e6)


def write_geotiff(path: Path, values: np.ndarray, **profile: Any) -> None:
    """Values (bands, h, w) in tiles of 16 pixels."""
    bands, height, width = values.shape
    shared = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    places = {"crs": "EPSG:32633", "transform": PLACE, "tiled": True, "blockxsize": 16, "blockysize": 16}
    with rasterio.open(path, "w", **{**shared, **places, **profile}) as file:
        file.write(values)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(((values - low) / (high - low) * 255).clip(0, 255)).astype(np.uint8)


def test_bands_in_windows_scaled_by_the_percentiles_of_all_files(tmp_path: Path) -> None:
    values = generator().integers(100, 4000, (2, 5, 40, 50), dtype=np.uint16)
    values[1] *= 2
    values[0, :, :5] = 0  # said to be nothing
    files = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for file, image in zip(files, values, strict=True):
        write_geotiff(file, image, nodata=0)
    reader = ImageReader(bands=(4, 3, 2)).measured(files, {})
    valid = [values[:, band][values[:, band] > 0] for band in (3, 2, 1)]
    assert np.allclose(reader.limits, [np.percentile(band, (2, 98)) for band in valid])
    expected = np.stack(
        [scaled(values[1, band], *limits) for band, limits in zip((3, 2, 1), reader.limits, strict=True)], -1
    )
    assert np.abs(reader.read(files[1]).astype(int) - expected).max() <= 1
    with reader.open(files[1]) as raster:
        assert raster.size == (40, 50) == reader.size(files[1])
        window = raster.window(7, 11, 20, 30)
        assert np.array_equal(window, reader.read(files[1])[7:27, 11:41])
    small = reader.read(files[1], max_side=25)
    blocks = values[1, [3, 2, 1]].reshape(3, 20, 2, 25, 2).mean((2, 4)).transpose(1, 2, 0)
    low, high = np.transpose(reader.limits)
    assert small.shape == (20, 25, 3) and np.abs(small - ((blocks - low) / (high - low) * 255).clip(0, 255)).max() < 2
    again = ImageReader(bands=(4, 3, 2)).measured(files[:1], reader.settings())
    assert again == reader  # what was written down holds
    other = ImageReader(bands=(4, 3, 1)).measured(files[:1], reader.settings())
    assert other.limits != reader.limits


def test_bands_and_pages_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(path, np.ones((5, 20, 20), np.uint8))
    with pytest.raises(UserError, match=r"a.tif: has 5 bands; say which by --bands"):
        ImageReader().read(path)
    with pytest.raises(UserError, match=r"a.tif: has 5 bands, and no band 6; correct --bands"):
        ImageReader((6, 1, 2)).read(path)
    with pytest.raises(UserError, match=r"a.tif: has 1 pages, and no page 2; correct --page"):
        ImageReader((1,), 2).read(path)
    write_geotiff(tmp_path / "few.tif", np.ones((2, 20, 20), np.uint16))
    write_geotiff(tmp_path / "many.tif", np.ones((6, 20, 20), np.uint16))
    assert len(ImageReader((6,)).measured([tmp_path / "few.tif", tmp_path / "many.tif"], {}).limits) == 1
    with pytest.raises(UserError, match=r"few.tif: has 2 bands, and no band 6"):
        ImageReader((6,)).measured([tmp_path / "few.tif"], {})
    for wrong in ("4,3", "a", "1,,2", "0"):
        with pytest.raises(UserError, match=f"--bands {wrong}: should be one band or three"):
            parse_bands(wrong)
    assert parse_bands("4, 3,2") == (4, 3, 2)
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(UserError, match=r"a.tif: no readable TIFF"):
        ImageReader((1,)).read(path)
    write_geotiff(tmp_path / "b.tif", np.ones((3, 20, 20), np.int16))
    with pytest.raises(UserError, match=r"b.tif: holds int16, unlike others"):
        ImageReader((1, 2, 3)).read(tmp_path / "b.tif")


def test_pages_and_channels_of_a_microscope(tmp_path: Path) -> None:
    values = generator().integers(0, 4000, (2, 3, 4, 24, 30), dtype=np.uint16)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, values, metadata={"axes": "TCZYX"}, tile=(16, 16))
    with pytest.raises(UserError, match="has 8 pages; say which by --page N"):
        ImageReader((1,)).read(path)
    reader = ImageReader((3,), page=6, limits=((1000.0, 3000.0),))
    expected = scaled(values[1, 2, 1], 1000.0, 3000.0)
    assert (np.abs(reader.read(path).astype(int) - expected[..., None]) <= 1).all()
    photos = generator().integers(0, 256, (5, 24, 30, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", photos, photometric="rgb")
    assert np.array_equal(ImageReader(page=4).read(tmp_path / "stack.tif"), photos[3])
    assert np.array_equal(ImageReader(page=4, bands=(3, 2, 1)).read(tmp_path / "stack.tif"), photos[3, ..., ::-1])


def test_other_images_are_read_as_ever(tmp_path: Path) -> None:
    image = generator().integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name in ("a.png", "a.tif"):
        Image.fromarray(image).save(tmp_path / name)
        assert not ImageReader().is_raster(tmp_path / name)
        assert np.array_equal(ImageReader().read(tmp_path / name), image)
        assert ImageReader().size(tmp_path / name) == (20, 30)
    assert np.array_equal(ImageReader((2,)).read(tmp_path / "a.png"), read_image(tmp_path / "a.png"))
    assert ImageReader().measured([tmp_path / "a.png"], {}).settings() == {}
    with pytest.raises(UserError, match=r"b.tif: no such image"):
        ImageReader().read(tmp_path / "b.tif")


def test_where_an_image_lies(tmp_path: Path) -> None:
    for name, crs in (("a", "EPSG:32633"), ("feet", "EPSG:2263"), ("degrees", "EPSG:4326"), ("none", None)):
        write_geotiff(tmp_path / f"{name}.tif", np.ones((1, 20, 20), np.uint8), crs=crs)
    place = read_georeference(tmp_path / "a.tif")
    assert place.transform == tuple(PLACE)[:6] and place.urn == "urn:ogc:def:crs:EPSG::32633"
    assert np.array_equal(place.metres, [[0.5, 0], [0, -0.25]]) and rasterio.CRS.from_wkt(place.crs) == "EPSG:32633"
    feet = read_georeference(tmp_path / "feet.tif")
    assert np.allclose(feet.metres, np.array([[0.5, 0], [0, -0.25]]) * 1200 / 3937)  # of the US survey
    assert read_georeference(tmp_path / "degrees.tif").metres is None
    assert read_georeference(tmp_path / "none.tif") is None

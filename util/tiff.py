"""TIFF files of instruments: bands, pages, more than 8 bits, windows of what is large, and where on the ground it lies.

Bands and pages count from 1, as in the programs that show them. What Pillow reads is left to `util.image` unless bands
or a page are asked for.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.errors import UserError, first_line
from util.image import RGB, image_size, read_image

SUFFIXES = (".tif", ".tiff")
PERCENTILES = 2, 98  # of a band's values that become 0 and 255
SAMPLED = 100  # images in which they are looked for
PIECES, PIECE = 8, 64  # squares along each side of an image that are looked at, and their sides in pixels
CACHE_MB = 256  # of blocks that have been read
COLOURS = "red", "green", "blue"


class Georeference(NamedTuple):
    """Where an image lies."""

    crs: str  # the coordinate reference system as well-known text
    urn: str | None  # its name in GeoJSON, where the registry has it
    transform: tuple[float, ...]  # a, b, c, d, e, f: x = a * column + b * row + c, y = d * column + e * row + f
    metres: NDArray[np.float64] | None  # (2, 2): the same of steps in metres; None where the system is in degrees


class Raster:
    """The bands that are wanted of an open file, read in windows; `limits` become 0 and 255 where it has not 8 bits."""

    def __init__(self, name: str, planes: Sequence[tuple[Any, int]], limits: Sequence[Sequence[float]]) -> None:
        self.name, self.planes, self.limits = name, planes, limits  # a plane: an open dataset and the band in it
        dataset = planes[0][0]
        self.size: tuple[int, int] = dataset.height, dataset.width
        self.dtype = np.dtype(dataset.dtypes[0])

    def window(self, top: int, left: int, height: int, width: int) -> RGB:
        """The pixels (height, width, 3) from a corner on."""
        return self._read(height, width, window=((top, top + height), (left, left + width)))

    def whole(self, max_side: int | None = None) -> RGB:
        """The whole image (h, w, 3), averaged down where its longer side exceeds `max_side`."""
        scale = min(1.0, (max_side or max(self.size)) / max(self.size))
        height, width = (max(1, round(side * scale)) for side in self.size)
        return self._read(height, width, out_shape=(height, width), resampling=_average())

    def samples(self) -> NDArray[Any]:
        """Some of the values (bands, n), spread over the image, masked where they are not valid."""
        rows, columns = (
            [(start, min(start + PIECE, side)) for start in range(0, side, max(PIECE, -(-side // PIECES)))]
            for side in self.size
        )
        windows = [(row, column) for row in rows for column in columns]
        pieces = [self._values(window=window, masked=True).reshape(len(self.planes), -1) for window in windows]
        return np.ma.concatenate(pieces, 1)

    def _values(self, **how: Any) -> NDArray[Any]:
        """Bands first; those of one dataset at once, as its blocks hold all of them."""
        if len({id(dataset) for dataset, _ in self.planes}) == 1:
            return self.planes[0][0].read([band for _, band in self.planes], **how)
        return np.ma.stack([dataset.read(band, **how) for dataset, band in self.planes])

    def _read(self, height: int, width: int, **how: Any) -> RGB:
        values = np.asarray(self._values(**how))
        if values.dtype == np.uint8:
            return np.ascontiguousarray(np.broadcast_to(values.transpose(1, 2, 0), (height, width, 3)))
        if len(self.limits) != len(self.planes):
            raise UserError(f"{self.name}: holds {values.dtype}, unlike others; give each kind of image a run")
        image = np.empty((height, width, 3), np.uint8)
        for channel in range(3):
            number = channel % len(values)
            image[..., channel] = _eight_bits(values[number], *self.limits[number])
        return image


def _eight_bits(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values of which `low` becomes 0 and `high` 255; by a table where there are few."""
    if values.dtype.kind in "ui" and values.dtype.itemsize == 2:
        first = np.iinfo(values.dtype).min
        table = _eight_bits(np.arange(1 << 16, dtype=np.float32) + first, low, high)
        return np.take(table, values if first == 0 else values.astype(np.int32) - first)
    scaled = (values.astype(np.float32) - low) * np.float32(255 / max(high - low, 1e-9))
    return np.rint(np.nan_to_num(scaled).clip(0, 255)).astype(np.uint8)


class OpenCopy(io.BytesIO):
    """What was read of a file, as another file that is open and called like it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.name = str(path)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ImageReader:
    """Reads images of all kinds alike, of TIFF files these bands of this page."""

    bands: tuple[int, ...] = ()  # one, or three for red, green and blue; by default those that the file calls so
    page: int | None = None
    limits: tuple[tuple[float, float], ...] = ()  # for each band the values that become 0 and 255

    def is_raster(self, path: Path) -> bool:
        """Whether a file is read here, and not as other images are."""
        return path.suffix.lower() in SUFFIXES and (bool(self.bands or self.page) or is_raster(path))

    def size(self, path: Path) -> tuple[int, int]:
        """Height and width; UserError as `read`."""
        if not self.is_raster(path):
            return image_size(path)
        with self.open(path) as raster:
            return raster.size

    def read(self, path: Path, max_side: int | None = None) -> RGB:
        """RGB (h, w, 3), averaged down to `max_side`; UserError for what cannot be read, or lacks the bands or page."""
        if not self.is_raster(path):
            return read_image(path, max_side)
        with self.open(path) as raster:
            return raster.whole(max_side)

    def source(self, path: Path) -> Path | BinaryIO:
        """What others can read: the file, or what is read here of it as an open PNG; UserError as `read`."""
        if not self.is_raster(path):
            return path
        copy = OpenCopy(path)
        Image.fromarray(self.read(path)).save(copy, "PNG")
        return copy

    @contextmanager
    def open(self, path: Path) -> Iterator[Raster]:
        """A file to be read in windows; UserError as `read`."""
        with _rasterio(path) as (rasterio, stack):
            main = stack.enter_context(rasterio.open(path))
            names = _planes_of_page(path, self.page) if self.page or main.subdatasets else [str(path)]
            opened = [main if name == str(path) else stack.enter_context(rasterio.open(name)) for name in names]
            planes = [(dataset, band) for dataset in opened for band in range(1, dataset.count + 1)]
            bands = self.bands or _usual_bands(path, [d.colorinterp[band - 1].name for d, band in planes])
            if missing := [band for band in bands if not 0 < band <= len(planes)]:
                raise UserError(f"{path}: has {len(planes)} bands, and no band {missing[0]}; correct --bands")
            yield Raster(str(path), [planes[band - 1] for band in bands], self.limits)

    def measured(self, files: Sequence[Path], known: Mapping[str, Any]) -> "ImageReader":
        """The same with the limits of these files' bands, or with those that `settings` gave to an earlier run.

        UserError where none of the files has the bands; of some that have not, whoever reads them is told.
        """
        if known.get("limits") and known == replace(self, limits=known["limits"]).settings():
            return replace(self, limits=tuple(map(tuple, known["limits"])))
        found, mistakes = [], []
        rasters = [path for path in files if self.is_raster(path)]
        rasters = rasters[:: max(1, -(-len(rasters) // SAMPLED))]
        for path in rasters:
            try:
                with self.open(path) as raster:
                    found += [raster.samples()] if raster.dtype != np.uint8 else []
            except UserError as error:
                mistakes.append(error)
        if mistakes and len(mistakes) == len(rasters):
            raise mistakes[0]
        if len({len(samples) for samples in found}) > 1:
            raise UserError("some images have one band and some three; say which are meant by --bands")
        bands = [band.compressed() for band in np.ma.concatenate(found, 1)] if found else []
        limits = [np.percentile(values, PERCENTILES) if len(values) else (0, 1) for values in bands]
        return replace(self, limits=tuple((float(low), float(high)) for low, high in limits))

    def settings(self) -> dict[str, Any]:
        """What images depend on, as JSON has it; nothing where all are read as others are."""
        known = {"bands": list(self.bands), "page": self.page, "limits": [list(pair) for pair in self.limits]}
        return {name: value for name, value in known.items() if value}


def parse_bands(text: str) -> tuple[int, ...]:
    """The numbers in `4,3,2`; UserError where they are not one or three."""
    bands = tuple(int(word) for word in text.split(",") if word.strip().isdecimal())
    if len(bands) not in (1, 3) or len(bands) != len(text.split(",")) or min(bands) < 1:
        raise UserError(f"--bands {text}: should be one band or three for red, green and blue, such as 4,3,2")
    return bands


def is_raster(path: Path) -> bool:
    """Whether a file is a TIFF that Pillow does not know, or takes for an attack by its size."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("TIFF",)):
                return False
    except Exception:  # what is no image makes Pillow fail in any way there is
        return True


def raster_size(path: Path) -> tuple[int, int]:
    """Height and width of such a file, from its header; UserError where it is damaged."""
    with _rasterio(path) as (rasterio, stack):
        dataset = stack.enter_context(rasterio.open(path))
        return dataset.height, dataset.width


def read_georeference(path: Path) -> Georeference | None:
    """Where the image of a file lies; None for a file that does not say, or without rasterio."""
    if path.suffix.lower() not in SUFFIXES or find_spec("rasterio") is None:
        return None
    with _rasterio(path) as (rasterio, stack):
        dataset = stack.enter_context(rasterio.open(path))
        crs, move = dataset.crs, dataset.transform
        if not crs:
            return None
        code = crs.to_authority()
        metre = crs.linear_units_factor[1] if crs.is_projected else None
        linear = np.array([[move.a, move.b], [move.d, move.e]])
        urn = f"urn:ogc:def:crs:{code[0]}::{code[1]}" if code else None
        return Georeference(crs.to_wkt(), urn, tuple(move)[:6], None if metre is None else linear * metre)


def _planes_of_page(path: Path, page: int | None) -> list[str]:
    """What rasterio calls the planes of a page: one for each channel where those lie apart, as microscopes do."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        lead = series.axes[: series.ndim - len(series.keyframe.axes)]
        shape = series.shape[: len(lead)]
        numbers = np.arange(len(series.pages)).reshape(shape)
        if "C" in lead:
            numbers = np.moveaxis(numbers, lead.index("C"), -1)
        numbers = numbers.reshape(-1, shape[lead.index("C")] if "C" in lead else 1)
        if page is None and len(numbers) > 1:
            raise UserError(f"{path}: has {len(numbers)} pages; say which by --page N")
        if page is not None and not 0 < page <= len(numbers):
            raise UserError(f"{path}: has {len(numbers)} pages, and no page {page}; correct --page")
        wanted = [series.pages[number] for number in numbers[(page or 1) - 1].tolist()]
        if any(plane is None or plane.parent is not file for plane in wanted):
            raise UserError(f"{path}: some of its planes are in other files; join them to one")
        return [f"GTIFF_DIR:{plane.index + 1}:{path}" for plane in wanted]


def _usual_bands(path: Path, colours: Sequence[str]) -> tuple[int, ...]:
    """The only band, or those that are called red, green and blue."""
    if len(colours) == 1:
        return (1,)
    if not set(COLOURS) <= set(colours):
        raise UserError(f"{path}: has {len(colours)} bands; say which by --bands, such as --bands 3,2,1")
    return tuple(colours.index(name) + 1 for name in COLOURS)


@contextmanager
def _rasterio(path: Path) -> Iterator[tuple[Any, ExitStack]]:
    """The package, and a stack for what is opened; what it says of a file is a UserError."""
    if find_spec("rasterio") is None or find_spec("tifffile") is None:
        raise UserError(f"{path}: this kind of TIFF needs two packages more; pip install 'hmnet[geo]'")
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE_MB), ExitStack() as stack:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield rasterio, stack
    except RasterioError as error:
        raise UserError(f"{path}: no readable TIFF ({first_line(error)}); export it again") from None


def _average() -> Any:
    from rasterio.enums import Resampling

    return Resampling.average

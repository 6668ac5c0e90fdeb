"""Masks as GeoTIFF, which lie where their images do."""

from prediction.formats.images import SegmentedImage
from prediction.formats.writer import FormatWriter
from util.errors import UserError
from util.visualize import class_color


class GeoTiff(FormatWriter):
    """A folder with an index mask for every image, in its coordinate reference system."""

    place = "geotiff"

    def add(self, image: SegmentedImage) -> None:
        import rasterio

        if image.place is None:
            raise UserError(f"{image.path}: has no coordinate reference system; leave out --format geotiff")
        height, width = image.size
        shape = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": height, "width": width}
        where = {"crs": image.place.crs, "transform": rasterio.Affine(*image.place.transform)}
        with rasterio.open(
            self.file(image.name, ".tif"), "w", tiled=True, compress="deflate", **shape, **where
        ) as file:
            file.write(image.mask, 1)
            file.write_colormap(1, {0: (0, 0, 0), **{value: class_color(value) for value in self.classes}})

"""GeoJSON, as geographic systems and QuPath read it: polygons with holes along the sides of pixels."""

import json
from typing import Any

from prediction.formats.images import SegmentedImage
from prediction.formats.writer import FormatWriter
from prediction.objects import MaskObject
from util.visualize import class_color


class GeoJson(FormatWriter):
    """A folder with a file for every image, in its coordinate reference system; without one in pixels, y downwards."""

    place = "geojson"

    def add(self, image: SegmentedImage) -> None:
        features = []
        for segment in image.segments:
            shown = {"name": segment.name, "color": list(class_color(segment.object.value))}
            properties = {
                **{"objectType": "annotation", "classification": shown},
                **{"class": segment.name, "score": segment.score, "area": segment.object.area},
            }
            shape = _geometry(segment.object, image.place.transform if image.place else (1, 0, 0, 0, 1, 0))
            features.append({"type": "Feature", "properties": properties, "geometry": shape})
        content: dict[str, Any] = {"type": "FeatureCollection", "features": features}
        if image.place and image.place.urn:  # not in the standard since 2016, which knows longitude and latitude alone
            content["crs"] = {"type": "name", "properties": {"name": image.place.urn}}
        self.file(image.name, ".geojson").write_text(json.dumps(content) + "\n")


def _geometry(item: MaskObject, transform: tuple[float, ...]) -> dict[str, Any]:
    """A polygon, or several where the object holds together at corners only, which one polygon must not."""
    from rasterio import Affine
    from rasterio.features import shapes

    region, (left, top) = item.region(), item.box[:2]
    a, b, c, d, e, f = transform
    placed = Affine(a, b, a * left + b * top + c, d, e, d * left + e * top + f)
    polygons = [shape["coordinates"] for shape, _ in shapes(region, region, connectivity=4, transform=placed)]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}

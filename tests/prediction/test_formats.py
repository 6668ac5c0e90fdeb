"""Each format read back by this tree's readers and by others: the masks are the same."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from dataset.prepare.image import upright_label
from dataset.prepare.sources import read_source
from prediction.formats.table import FORMATS, check_places, chosen_formats, write_formats
from prediction.manifest import Part, join
from prediction.objects import find_objects
from prediction.plan import WHOLE
from tests.toy import generator
from util.errors import UserError
from util.visualize import class_color, save_image, save_index

CLASSES = {3: "cat", 7: "a dog"}


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask of two classes with holes, single pixels and objects that touch in corners."""
    noise = rng.random((2, height, width)).astype(np.float32)
    smooth = [cv2.GaussianBlur(layer, (0, 0), sigma) for layer, sigma in zip(noise, (1.5, 0.8), strict=True)]
    first, second = (layer > np.quantile(layer, 0.6) for layer in smooth)
    return np.select([first, second], [3, 7], 0).astype(np.uint8)


def write_results(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    """What predict.py leaves for these masks of the images in folder/photos."""
    out = folder / "out"
    records: dict[str, list[dict[str, Any]]] = {}
    for file, mask in masks.items():
        name = f"masks/{Path(file).with_suffix('')}.png"
        save_index(out / name, mask)
        (folder / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
        if Path(file).suffix == ".jpg":
            save_image(folder / "photos" / file, np.full((*mask.shape, 3), 99, np.uint8))
        found = [value for value in CLASSES if (mask == value).any()]
        shared = {"file": file, "found": len(found), "mask": name, "score": 0.75}
        records[file] = [{**shared, "class": CLASSES[value], "value": value} for value in found]
        records[file] = records[file] or [{**shared, "class": None, "value": None}]
        for record in records[file]:
            if record["value"] == 7:  # the scores of class 3 are those of all of it
                count = sum(item.value == 7 for item in find_objects(mask))
                record["scores"] = [round(number / 1000, 3) for number in range(count)]
    (out / "classes.txt").write_text("".join(f"{value} {name}\n" for value, name in CLASSES.items()))
    (out / "run.json").write_text(json.dumps({"query": str(folder / "photos"), "weights": None, "support": ""}))
    with Part(out, WHOLE) as part:
        for of_file in records.values():
            part.append(of_file)
    join(out)
    return out


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = generator()
    whole = np.full((18, 10), 3, np.uint8)
    masks = {"b/ü 1.jpg": blobs(rng, 40, 57), "a.jpg": blobs(rng, 33, 20), "all.jpg": whole, "none.jpg": whole * 0}
    return write_results(tmp_path, masks), masks


def numbered(mask: np.ndarray, classes: list[str]) -> np.ndarray:
    """A mask with the places of its classes in a list, from 1, for their values."""
    return np.select([mask == value for value in CLASSES], [classes.index(name) + 1 for name in CLASSES.values()], 0)


def test_coco_by_pycocotools_and_our_reader(results: tuple[Path, dict[str, np.ndarray]]) -> None:
    out, masks = results
    write_formats(["coco"], out)
    coco = COCO(str(out / "coco.json"))
    assert {item["id"]: item["name"] for item in coco.loadCats(coco.getCatIds())} == CLASSES
    assert len(coco.imgs) == 4
    for image in coco.imgs.values():
        mask, drawn = masks[image["file_name"]], np.zeros((image["height"], image["width"]), np.uint8)
        for item in coco.imgToAnns[image["id"]]:
            region = coco.annToMask(item)
            assert not drawn[region > 0].any() and item["area"] == region.sum()
            assert item["bbox"] == list(cv2.boundingRect(region))
            drawn[region > 0] = item["category_id"]
        assert np.array_equal(drawn, mask)
    read = read_source(out / "coco.json", out.parent / "photos", 1)
    assert read.classes == ["cat", "a dog"] and len(read.images) == 3
    for item in read.images:
        assert np.array_equal(upright_label(item), numbered(masks[f"{item.name}.jpg"], read.classes))


def test_labelme_by_its_rule_and_our_reader(results: tuple[Path, dict[str, np.ndarray]]) -> None:
    out, masks = results
    write_formats(["labelme"], out)
    for file, mask in masks.items():
        path = (out / "labelme" / file).with_suffix(".json")
        content = json.loads(path.read_text())
        assert (path.parent / content["imagePath"]).samefile(out.parent / "photos" / file)
        assert len(content["shapes"]) == len(find_objects(mask))
        image = Image.new("L", mask.shape[::-1])
        for shape in content["shapes"]:
            if shape["shape_type"] == "polygon":
                draw = ImageDraw.Draw(image)
                value = {"cat": 3, "a dog": 7}[shape["label"]]
                draw.polygon([tuple(point) for point in shape["points"]], outline=value, fill=value)
        polygons = np.asarray(image)
        assert np.array_equal(polygons[polygons > 0], mask[polygons > 0])
    read = read_source(out / "labelme", None, 1)
    assert read.classes == ["a dog", "cat"] and len(read.images) == 4
    for item in read.images:
        assert np.array_equal(upright_label(item), numbered(masks[f"{item.name}.jpg"], read.classes))


def read_yolo(path: Path, height: int, width: int) -> np.ndarray:
    """A class map, numbered from 1, as trainers fill it: corners cut off to whole pixels."""
    drawn = np.zeros((height, width), np.uint8)
    for line in path.read_text().splitlines():
        number, *parts = line.split()
        points = np.array(parts, float).reshape(-1, 2) * (width, height)
        assert len(points) > 2  # else it is read as a box
        cv2.fillPoly(drawn, [points.astype(np.int32)], int(number) + 1)
    return drawn


def test_yolo_by_the_rule_of_its_trainer(results: tuple[Path, dict[str, np.ndarray]]) -> None:
    out, masks = results
    write_formats(["yolo"], out)
    content = yaml.safe_load((out / "yolo/data.yaml").read_text())
    assert content == {"train": "images", "val": "images", "names": {0: "cat", 1: "a dog"}}
    for file, mask in masks.items():
        assert (out / "yolo/images" / file).samefile(out.parent / "photos" / file)
        drawn = read_yolo((out / "yolo/labels" / file).with_suffix(".txt"), *mask.shape)
        assert np.array_equal(drawn, np.select([mask == 3, mask == 7], [1, 2], 0))


def test_yolo_by_supervision(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    masks = {"a.jpg": blobs(generator(), 40, 57)}
    out = write_results(tmp_path, masks)
    write_formats(["yolo"], out)
    folder = out / "yolo"
    data = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
    )
    drawn = np.zeros((40, 57), np.uint8)
    for region, number in zip(*[getattr(next(iter(data))[2], name) for name in ("mask", "class_id")], strict=True):
        drawn[region] = [3, 7][number]
    assert data.classes == ["cat", "a dog"] and np.array_equal(drawn, masks["a.jpg"])


def test_geojson_in_pixels_by_shapely(results: tuple[Path, dict[str, np.ndarray]]) -> None:
    shapely, features = pytest.importorskip("shapely"), pytest.importorskip("rasterio.features")
    out, masks = results
    write_formats(["geojson"], out)
    for file, mask in masks.items():
        content = json.loads((out / "geojson" / file).with_suffix(".geojson").read_text())
        objects = find_objects(mask)
        shapes = [shapely.geometry.shape(item["geometry"]) for item in content["features"]]
        assert "crs" not in content and all(shape.is_valid for shape in shapes)
        assert [shape.area for shape in shapes] == [item.area for item in objects]
        assert [shape.bounds for shape in shapes] == [item.box for item in objects]
        names = [item["properties"]["classification"]["name"] for item in content["features"]]
        assert names == [CLASSES[item.value] for item in objects]
        pairs = [(shape, item.value) for shape, item in zip(shapes, objects, strict=True)]
        drawn = features.rasterize(pairs, mask.shape) if pairs else mask * 0
        assert np.array_equal(drawn, mask)


def test_csv_has_a_row_for_every_object(results: tuple[Path, dict[str, np.ndarray]]) -> None:
    out, masks = results
    write_formats(["csv"], out)
    with (out / "objects.csv").open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert {row["file"] for row in rows} == set(masks) - {"none.jpg"}
    for file, mask in masks.items():
        own = [row for row in rows if row["file"] == file]
        for row, item in zip(own, find_objects(mask), strict=True):
            assert CLASSES[int(row["value"])] == row["class"] and int(row["area"]) == item.area
            assert tuple(int(row[side]) for side in ("left", "top", "right", "bottom")) == item.box
            assert row["area_m2"] == ""
        dogs = [float(row["score"]) for row in own if row["value"] == "7"]
        assert dogs == [round(number / 1000, 3) for number in range(len(dogs))]
        assert all(float(row["score"]) == 0.75 for row in own if row["value"] == "3")
    whole = next(row for row in rows if row["file"] == "all.jpg")
    assert [whole[key] for key in ("x", "y", "length", "width")] == ["5.0", "9.0", "18.0", "10.0"]


def test_where_the_image_lies_there_lie_mask_polygons_and_metres(tmp_path: Path) -> None:
    rasterio, geopandas = pytest.importorskip("rasterio"), pytest.importorskip("geopandas")
    mask = blobs(generator(), 30, 44)
    out = write_results(tmp_path, {"a.tif": mask})
    move = rasterio.Affine(0.3, 0.4, 4e5, 0.4, -0.3, 5e6)  # pixels of half a metre, turned
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 30, "width": 44}
    with rasterio.open(tmp_path / "photos/a.tif", "w", crs="EPSG:32633", transform=move, **profile) as file:
        file.write(mask, 1)
    check_places(["geotiff"], True, [tmp_path / "photos/a.tif"])
    write_formats(["geojson", "geotiff", "csv"], out)
    with rasterio.open(out / "geotiff/a.tif") as file:
        assert file.crs == "EPSG:32633" and file.transform == move and np.array_equal(file.read(1), mask)
        assert file.colormap(1)[3] == (*class_color(3), 255)
    frame = geopandas.read_file(out / "geojson/a.geojson")
    assert frame.crs == "EPSG:32633" and list(frame["area"]) == [item.area for item in find_objects(mask)]
    with (out / "objects.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert np.allclose([float(row["area_m2"]) for row in rows], frame.geometry.area)
    boxes = frame.geometry.minimum_rotated_rectangle()
    assert np.allclose([float(row["length_m"]) * float(row["width_m"]) for row in rows], boxes.area, rtol=1e-3)
    with rasterio.open(tmp_path / "b.tif", "w", crs="EPSG:4326", transform=move, **profile) as file:
        file.write(mask, 1)
    with pytest.raises(UserError, match=r"b.tif: its coordinates are degrees"):
        check_places([], True, [tmp_path / "photos/a.tif", tmp_path / "b.tif"])
    with pytest.raises(UserError, match=r"c.jpg: has no coordinate reference system; leave out --format geotiff"):
        check_places(["geotiff"], False, [tmp_path / "c.jpg"])
    check_places(["coco"], False, [tmp_path / "c.jpg"])


def test_an_error_on_the_way_leaves_what_was_there(results: tuple[Path, dict[str, np.ndarray]]) -> None:
    pytest.importorskip("rasterio")
    out, _ = results
    (out / ".coco.json.99.tmp").mkdir()  # of a run that was killed
    formats = [name for name in FORMATS if name != "geotiff"]
    write_formats(formats, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_formats(formats, out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "masks/b/ü 1.png").write_bytes(before[out / "masks/b/ü 1.png"][:200])
    with pytest.raises(UserError, match=r"masks/b/ü 1.png: no readable mask"):
        write_formats(formats, out)
    save_index(out / "masks/b/ü 1.png", np.full((40, 57), 5, np.uint8))
    with pytest.raises(UserError, match=r"holds the value 5, which the manifest does not"):
        write_formats(formats, out)
    del before[out / "masks/b/ü 1.png"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(out.glob(".*"))


def test_formats_that_are_not_known() -> None:
    assert chosen_formats("") == [] and chosen_formats("coco, csv") == ["coco", "csv"]
    with pytest.raises(UserError, match="--format cocoa: no such format; there are coco, labelme"):
        chosen_formats("csv,cocoa")

"""Images of one's own in every format become the same class maps that were drawn."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from dataset.prepare.custom import prepare_custom
from dataset.prepare.image import mask_image, upright_label
from dataset.prepare.sources import read_source
from tests.dataset.prepare.trees import (
    SIZE,
    random_label,
    run_lengths,
    write_jpeg,
    write_lines,
    write_palette_png,
)
from util.errors import UserError

Labels = dict[str, np.ndarray]


@pytest.fixture
def labels(rng: np.random.Generator) -> Labels:
    """Every image has the classes 1 to 3 at least, as rectangles of different sizes that do not overlap."""
    labels = {}
    for name in ("a", "b.c", "sub/d e"):
        label = np.zeros(SIZE[::-1], np.uint8)
        for value, left in ((1, 0), (2, 30), (3, 60)):
            top, height, width = rng.integers(0, 30), rng.integers(5, 60), rng.integers(5, 30)
            label[top : top + height, left : left + width] = value
        labels[name] = label
    return labels


def box(label: np.ndarray, value: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a class's rectangle; right and bottom are outside."""
    rows, columns = np.nonzero(label == value)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def assert_read(source: Path, labels: Labels, classes: list[str], images: Path | None = None) -> None:
    collection = read_source(source, images, workers=1)
    assert collection.classes == classes
    assert sorted(item.name for item in collection.images) == sorted(labels)
    for item in collection.images:
        np.testing.assert_array_equal(upright_label(item), labels[item.name])


def write_images(folder: Path, labels: Labels, rng: np.random.Generator) -> None:
    for name in labels:
        write_jpeg(folder / f"{name}.jpg", rng)


@pytest.mark.parametrize(("image_folder", "mask_folder"), [("JPEGImages", "SegmentationClass"), ("images", "masks")])
def test_voc_layout(
    tmp_path: Path, labels: Labels, rng: np.random.Generator, image_folder: str, mask_folder: str
) -> None:
    write_images(tmp_path / image_folder, labels, rng)
    write_jpeg(tmp_path / image_folder / "without mask.jpg", rng)
    values = np.array([0, 20, 5, 11] + [0] * 252, np.uint8)
    values[255] = 255
    for label in labels.values():
        label[80:] = 255
    for name, label in labels.items():
        write_palette_png(tmp_path / mask_folder / f"{name}.png", values[label])
    renumbered = {name: np.choose(np.minimum(label, 4), [0, 3, 1, 2, 255]) for name, label in labels.items()}
    assert_read(tmp_path, renumbered, ["class_5", "class_11", "class_20"])
    write_lines(tmp_path / "classes.txt", ["5 red fox", "20 hen", "11 cow", "7 nobody"])
    assert_read(tmp_path, renumbered, ["red fox", "cow", "hen"])
    write_lines(tmp_path / "classes.txt", ["5 red fox", "20 hen"])
    with pytest.raises(UserError, match=r"a.png holds the value 11, for which .*classes.txt has no name"):
        read_source(tmp_path, None, workers=1)


def test_voc_layout_with_cvats_label_map(tmp_path: Path, labels: Labels, rng: np.random.Generator) -> None:
    write_images(tmp_path / "JPEGImages", labels, rng)
    colours = np.array([(0, 0, 0), (10, 200, 30), (250, 1, 2), (9, 9, 9)], np.uint8)
    for name, label in labels.items():
        path = tmp_path / f"SegmentationClass/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours[label]).save(path)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "fox:10,200,30::", "hen:250,1,2::", "cow:9,9,9::"]
    write_lines(tmp_path / "labelmap.txt", lines)
    assert_read(tmp_path, labels, ["fox", "hen", "cow"])
    for name in ("Background", "_background_"):
        write_lines(tmp_path / "labelmap.txt", [name + lines[1].removeprefix("background"), *lines[2:]])
        assert_read(tmp_path, labels, ["fox", "hen", "cow"])


def test_voc_layout_with_its_own_lists(tmp_path: Path, labels: Labels, rng: np.random.Generator) -> None:
    del labels["sub/d e"]
    write_images(tmp_path / "JPEGImages", labels, rng)
    for name, label in labels.items():
        write_palette_png(tmp_path / f"SegmentationClassAug/{name}.png", label)
    expected = {"train": {"a"}, "val": {"b.c"}}
    write_lines(tmp_path / "ImageSets/train.txt", ["JPEGImages/a.jpg SegmentationClassAug/a.png"])
    write_lines(tmp_path / "ImageSets/val.txt", ["JPEGImages/b.c.jpg SegmentationClassAug/b.c.png"])
    assert read_source(tmp_path, None, workers=1).parts == expected
    write_lines(tmp_path / "ImageSets/Segmentation/train.txt", ["b.c"])
    write_lines(tmp_path / "ImageSets/Segmentation/val.txt", ["a"])
    assert read_source(tmp_path, None, workers=1).parts == {"train": {"b.c"}, "val": {"a"}}
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    (tmp_path / "ImageSets/train.txt").unlink()
    with pytest.warns(UserWarning, match=r"Segmentation/train.txt: not used, as there is no val.txt"):
        assert not read_source(tmp_path, None, workers=1).parts


def test_names_with_accents_of_either_form_and_of_no_encoding(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    for image, mask in (("e\u0301", "\u00e9"), ("u\u0308", "u\u0308"), ("\udce9", "\udce9"), ("left out", None)):
        write_jpeg(tmp_path / f"images/{image}.jpg", rng)
        if mask:
            write_palette_png(tmp_path / f"masks/{mask}.png", random_label(rng, [1, 2]))
    write_lines(tmp_path / "ImageSets/train.txt", ["e\u0301.jpg"])
    write_lines(tmp_path / "ImageSets/val.txt", ["u\u0308"])
    collection = read_source(tmp_path, None, workers=1)
    assert collection.parts == {"train": {"\u00e9"}, "val": {"\u00fc"}}
    assert "1 images without a mask are left out; the first is" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "ImageSets")
    out = tmp_path / "out"
    prepare_custom(tmp_path, out, name="own", folds=None, val_share=0.5, images=None, workers=1)
    assert {path.stem for path in (out / "JPEGImages").iterdir()} == {"\u00e9", "\u00fc", "_"}


def test_mask_without_image_and_masks_without_class(tmp_path: Path, rng: np.random.Generator) -> None:
    write_jpeg(tmp_path / "JPEGImages/a.jpg", rng)
    for name, label, message in (
        ("a", np.full(SIZE[::-1], 255, np.uint8), "no mask holds a class"),
        ("b", random_label(rng, [1]), "b.png has no image"),
    ):
        write_palette_png(tmp_path / f"SegmentationClass/{name}.png", label)
        with pytest.raises(UserError, match=message):
            read_source(tmp_path, None, workers=1)


@pytest.mark.parametrize("place", ["instances.json", "annotations/instances.json", "."])
def test_coco(tmp_path: Path, labels: Labels, rng: np.random.Generator, place: str) -> None:
    """Categories keep the order of their ids; one that nobody uses is left out; every second shape is run lengths."""
    write_images(tmp_path / "images", labels, rng)
    images, annotations = [], []
    for number, (name, label) in enumerate(labels.items(), start=7):
        images.append({"id": number, "file_name": f"{name}.jpg", "width": SIZE[0], "height": SIZE[1]})
        for value in (1, 2, 3):
            left, top, right, bottom = box(label, value)
            shape: Any = [[left, top, right, top, right, bottom, left, bottom]]
            if value == 2:
                shape = {"size": list(label.shape), "counts": run_lengths(label == value)}
            annotations.append({"image_id": number, "category_id": 10 * value, "segmentation": shape, "iscrowd": 0})
    categories = [{"id": 30, "name": "cow"}, {"id": 5, "name": "nobody"}, {"id": 10, "name": "fox"}]
    categories.append({"id": 20, "name": "hen"})
    path = tmp_path / ("instances.json" if place == "." else place)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    assert_read(tmp_path / place, labels, ["fox", "hen", "cow"])
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"names the image a.jpg.*--images DIR"):
        read_source(tmp_path / place, None, workers=1)
    assert_read(tmp_path / place, labels, ["fox", "hen", "cow"], tmp_path / "elsewhere")


def labelme(label: np.ndarray, image: str, shapes: list[dict[str, Any]]) -> str:
    height, width = label.shape
    content = {"version": "5.5", "shapes": shapes, "imagePath": image, "imageData": None}
    return json.dumps(content | {"imageHeight": height, "imageWidth": width})


def write_labelme(folder: Path, labels: Labels, rng: np.random.Generator) -> None:
    """Class 1 is a polygon, class 2 a rectangle from its lower right to its upper left, class 3 a packed mask."""
    write_images(folder, labels, rng)
    for name, label in labels.items():
        boxes = [box(label, value) for value in (1, 2, 3)]
        (x0, y0, x1, y1), second, third = ((left, top, right - 1, bottom - 1) for left, top, right, bottom in boxes)
        png = io.BytesIO()
        Image.new("1", (third[2] - third[0] + 1, third[3] - third[1] + 1), 1).save(png, format="PNG")
        packed = base64.b64encode(png.getvalue()).decode()
        shapes = [
            {"label": "fox", "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]},
            {"label": "hen", "points": [second[2:], second[:2]], "shape_type": "rectangle"},
            {"label": "cow", "points": [third[:2], third[2:]], "shape_type": "mask", "mask": packed},
            {"label": "nose", "points": [[1, 1]], "shape_type": "point"},
        ]
        (folder / f"{name}.json").write_text(labelme(label, f"..\\images\\{Path(name).name}.jpg", shapes))


def test_labelme(tmp_path: Path, labels: Labels, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    write_labelme(tmp_path, labels, rng)
    in_order = {name: np.choose(label, [0, 2, 3, 1]).astype(np.uint8) for name, label in labels.items()}
    assert_read(tmp_path, in_order, ["cow", "fox", "hen"])
    assert "3 points and lines left out" in capsys.readouterr().out


def test_labelme_circle_ignored_and_smaller_on_top(tmp_path: Path, rng: np.random.Generator) -> None:
    write_jpeg(tmp_path / "a.jpg", rng)
    everything = [[0, 0], [SIZE[0], 0], list(SIZE), [0, SIZE[1]]]
    shapes = [
        {"label": "small", "points": [[50, 40], [50, 60]], "shape_type": "circle"},
        {"label": "__ignore__", "points": everything, "shape_type": "polygon"},
        {"label": "large", "points": [[30, 0], [99, 0], [99, 89], [30, 89]], "shape_type": "polygon"},
    ]
    (tmp_path / "a.json").write_text(labelme(np.zeros(SIZE[::-1]), "a.jpg", shapes))
    collection = read_source(tmp_path / "a.json", None, workers=1)
    assert collection.classes == ["large", "small"]
    label = upright_label(collection.images[0])
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    distance = np.hypot(rows - 40, columns - 50)
    assert (label[distance < 19] == 2).all()
    assert (label[(distance > 21) & (columns >= 30)] == 1).all()
    assert (label[(distance > 21) & (columns < 30)] == 255).all()


def test_what_cannot_be_read(tmp_path: Path, labels: Labels, rng: np.random.Generator) -> None:
    for source, message in ((tmp_path, "holds no annotations"), (tmp_path / "nowhere", "nowhere is missing")):
        with pytest.raises(UserError, match=message):
            read_source(source, None, workers=1)
    write_labelme(tmp_path, labels, rng)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match=rf"a.json names the image ..\\images\\a.jpg, which is not in {tmp_path}"):
        read_source(tmp_path, None, workers=1)
    (tmp_path / "b.c.json").write_text("{")
    with pytest.raises(UserError, match=r"b.c.json is no JSON file"):
        read_source(tmp_path, None, workers=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotation_of_a_turned_photograph(tmp_path: Path, rng: np.random.Generator, orientation: int) -> None:
    """Whether it was drawn on the image as shown or on the stored pixels: Pillow's own turning is the oracle."""
    stored, exif = random_label(rng, [1, 2, 3]), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(stored).save(tmp_path / "stored.png", exif=exif)
    shown = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "stored.png")))
    # Where the sizes do not tell, annotation tools show images upright.
    for label in (shown, stored) if orientation >= 5 else (shown,):
        Image.fromarray(label).save(tmp_path / "a.png")
        item = mask_image("a", tmp_path / "a.jpg", tmp_path / "a.png", label.shape)
        np.testing.assert_array_equal(upright_label(item), shown)


def test_annotation_of_another_size(tmp_path: Path, rng: np.random.Generator) -> None:
    write_jpeg(tmp_path / "a.jpg", rng)
    write_palette_png(tmp_path / "a.png", np.zeros((10, 20), np.uint8))
    with pytest.raises(UserError, match=r"a.jpg is 100x90, its annotation 20x10"):
        upright_label(mask_image("a", tmp_path / "a.jpg", tmp_path / "a.png", (10, 20)))

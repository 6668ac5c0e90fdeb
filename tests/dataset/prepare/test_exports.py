"""Exports of other programs, with odd names and shapes: read right, or refused in one line with nothing written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.prepare.image import find_image, upright_label
from dataset.prepare.sources import read_label_map, read_part, read_source
from tests.dataset.prepare.test_pascal import stamps
from tests.dataset.prepare.trees import run_lengths, write_jpeg, write_lines
from tools.prepare import main
from util.errors import UserError
from util.files import own_name

SQUARE = [20, 15, 50, 15, 50, 45, 20, 45]
EXPECTED = np.zeros((90, 100), bool)
EXPECTED[15:45, 20:50] = True


def coco(folder: Path, rng: np.random.Generator, names: list[str], **changes: Any) -> Path:
    """A COCO file with a square of one of two classes in every image; images are export/images/0.jpg, ..."""
    for number in range(len(names)):
        write_jpeg(folder / f"export/images/{number}.jpg", rng)
    images = [{"id": n, "file_name": name, "width": 100, "height": 90} for n, name in enumerate(names)]
    shape = {"segmentation": [SQUARE], "iscrowd": 0}
    annotations = [{"id": n, "image_id": n, "category_id": n % 2 + 1, **shape} for n in range(len(names))]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories} | changes
    path = folder / "export/result.json"
    path.write_text(json.dumps(content))
    return path


def custom(source: Path, out: Path) -> int:
    return main(["custom", str(source), "--out", str(out), "--workers", "1", "--name", "own"])


def test_images_are_read_from_anywhere_and_written_below_out(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "export/images"
    (tmp_path / "export").mkdir()
    names = ["../export/images/0.jpg", str(folder / "1.jpg"), "images\\2.jpg", f"file://{folder}/3.jpg", "C:\\x\\4.jpg"]
    names += ["http://host/data/5%2Ejpg", "/data/local-files/?d=images/6.jpg", "images/7%2ejpg"]
    names += ["https://host/b/8.jpg?key=a%2Fb&v=2", "e\u0301.jpg"]
    write_jpeg(folder / "\u00e9.jpg", rng)
    source = coco(tmp_path, rng, names)
    before = stamps(tmp_path / "export")
    assert custom(source, tmp_path / "out/deep") == 0
    assert stamps(tmp_path / "export") == before
    assert {path.name for path in tmp_path.iterdir()} == {"export", "out"}
    lists = [(tmp_path / f"out/deep/ImageSets/{part}.txt").read_text() for part in ("train", "val")]
    pairs = [line.split() for text in lists for line in text.splitlines()]
    assert len(pairs) == len(names)
    contents = {path.read_bytes() for path in folder.iterdir()}
    for image, mask in pairs:
        assert ".." not in image and (tmp_path / "out/deep" / image).read_bytes() in contents
        with Image.open(tmp_path / "out/deep" / mask) as label:
            assert np.array_equal(np.asarray(label) > 0, EXPECTED)


def test_two_names_of_one_image(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(UserError, match=r"0.jpg: is annotated twice, as 0 and images/0"):
        custom(coco(tmp_path, rng, ["0.jpg", "images/0.jpg"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_ours() -> None:
    rows = {"../../a": "a", "/etc/x": "etc/x", "a\\b": "a/b", ".git/x": "_git/x", "a\nb": "a_b", "": "_", "..": "_"}
    assert {stated: own_name(stated) for stated in rows} == rows
    long = own_name("é" * 300)
    assert len(long.encode()) <= 120 and long != own_name("é" * 301) and own_name("my cat.jpg") == "my cat.jpg"
    assert find_image("\0" * 3, [Path()]) is None and find_image("n" * 5000, [Path()]) is None


def change(key: str, value: Any) -> dict[str, Any]:
    return {"segmentation": [SQUARE], "image_id": 0, "category_id": 1, **{key: value}}


def shaped(segmentation: Any) -> dict[str, Any]:
    return {"annotations": [change("segmentation", segmentation)]}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"categories": None}, "categories: should be a valid list"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": " cat"}]}, r"s\[1\].name: 'cat' is there twice"),
        ({"categories": [{"id": 1, "name": "cat\x07"}]}, r"categories\[0\].name: .* is no name for a class"),
        ({"images": [{"id": 0, "file_name": "", "width": 9, "height": 9}]}, r"images\[0\].file_name"),
        ({"images": [{"id": 0, "file_name": "a", "width": 1e400, "height": 9}]}, r"images\[0\].width"),
        ({"annotations": [change("image_id", 77)]}, r"annotations\[0\].image_id: 77 is not in the file"),
        ({"annotations": [change("category_id", 77)]}, r"annotations\[0\].category_id: 77 is not in the file"),
        (shaped([[1, 2, 3]]), r"annotations\[0\].segmentation: a polygon of 3 numbers"),
        (shaped([[1, 2, 3, 4, 5, 1e9]]), r"annotations\[0\].segmentation: a corner at 1e\+09"),
        (shaped({"size": [90, 100], "counts": [9, 9]}), "run lengths of 18 pixels for 100x90"),
        (shaped({"size": [10**6] * 2, "counts": [10**12]}), "in an image of 100x90"),
        (shaped({"size": [90, 100], "counts": "abc"}), r"annotations\[0\].segmentation"),
        (shaped([[0.1, 0.1, 0.5, 0.1, 0.5, 1]]), "all corners are from 0 to 1; give them in pixels"),
        (shaped([[100, 2, 130, 40, 110, 60]]), r"annotations\[0\] encloses nothing, nor does any other"),
        (shaped([[1, 2, 30, 40]]), r"annotations\[0\] encloses nothing, nor does any other"),
        (shaped("abc"), r"annotations\[0\].segmentation"),
    ],
)  # fmt: skip
def test_coco_files_of_the_wrong_shape(
    tmp_path: Path, rng: np.random.Generator, changes: dict[str, Any], problem: str
) -> None:
    path = coco(tmp_path, rng, ["0.jpg", "1.jpg"], **changes)
    with pytest.raises(UserError, match=f"^{path}: .*{problem}") as caught:
        custom(path, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_coco_shapes_of_every_form_and_absurd_sizes(tmp_path: Path, rng: np.random.Generator) -> None:
    nested = [[[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]]
    shapes = [*nested, SQUARE, nested, {"size": [90, 100], "counts": run_lengths(EXPECTED)}, [SQUARE]]
    annotations = [{**change("segmentation", shape), "image_id": str(n)} for n, shape in enumerate(shapes)]
    path = coco(tmp_path, rng, [f"{number}.jpg" for number in range(len(shapes))], annotations=annotations)
    for item in read_source(path, None, 1).images:
        assert np.array_equal(upright_label(item), EXPECTED)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image |= {"width": 10**6, "height": 10**6}
    content["annotations"] = [{**change("segmentation", [SQUARE]), "category_id": n + 1} for n in (0, 1)]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="0.jpg is 100x90, its annotation 1000000x1000000"):
        custom(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def labelme(path: Path, *shapes: dict[str, Any], **changes: Any) -> None:
    content = {"shapes": list(shapes), "imagePath": f"{path.stem}.jpg", "imageHeight": 90, "imageWidth": 100}
    path.write_text(json.dumps(content | changes))


def corners(label: Any = "cat", kind: str = "rectangle", **changes: Any) -> dict[str, Any]:
    points = [[20, 15], [49, 15], [49, 44], [20, 44]]
    return {"label": label, "points": points, "shape_type": kind} | changes


@pytest.mark.parametrize("kind", ["rectangle", "polygon", "rotation", "oriented_rectangle"])
def test_rectangles_of_four_corners_and_labels_that_are_numbers(
    tmp_path: Path, rng: np.random.Generator, kind: str
) -> None:
    write_jpeg(tmp_path / "a.jpg", rng)
    labelme(tmp_path / "a.json", corners(7, kind))
    collection = read_source(tmp_path, None, 1)
    assert collection.classes == ["7"] and np.array_equal(upright_label(collection.images[0]), EXPECTED)


def test_a_image_of_the_files_own_name_wins(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("new.jpg", "old.jpg"):
        write_jpeg(tmp_path / name, rng)
    labelme(tmp_path / "new.json", corners(), imagePath="old.jpg")
    with pytest.warns(UserWarning, match=r"new.json: names the image old.jpg; new.jpg, of its own name, is taken"):
        (item,) = read_source(tmp_path, None, 1).images
    assert item.image == tmp_path / "new.jpg"
    labelme(tmp_path / "old.json", corners(), imagePath="new.jpg")
    with pytest.warns(UserWarning):
        assert [item.image.name for item in read_source(tmp_path, None, 1).images] == ["new.jpg", "old.jpg"]
    (tmp_path / "old.jpg").unlink()
    with pytest.raises(UserError, match=r"new.jpg is annotated by .*new.json too"):
        read_source(tmp_path, None, 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("null", "should be an object"),
        ("[1]", "should be an object"),
        ("{}", "shapes: Field required"),
        ('{"shapes": [{"label": null, "points": []}]}', r"shapes\[0\].label"),
        ('{"shapes": [{"label": "a", "points": [[1]]}]}', r"shapes\[0\].points\[0\]"),
        ('{"shapes": [{"label": "a", "points": [[1, 2]], "shape_type": "ellipse"}]}', r"\[0\]: shape_type: 'ellipse'"),
        ('{"shapes": [{"label": "a", "points": [[1, 2]], "shape_type": "circle"}]}', r"\[0\]: points: a circle with 1"),
        ("[" * 100_000, "is no JSON file"),
        ('{"a": 1, "b": {"x": 1, "y": 2, "x": 3}}', r"the key 'x' stands twice in one object"),
    ],
)  # fmt: skip
def test_labelme_files_of_the_wrong_shape(tmp_path: Path, rng: np.random.Generator, content: str, problem: str) -> None:
    write_jpeg(tmp_path / "a.jpg", rng)
    labelme(tmp_path / "a.json", corners())
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/x.json.*{problem}") as caught:
        custom(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_lists_as_all_systems_write_them(tmp_path: Path) -> None:
    known = {"0", "my photo 1", "sub/2"}
    path = tmp_path / "train.txt"
    spellings = ["0", "my photo 1 masks/my photo 1.png", "JPEGImages\\sub\\2.jpg", "/JPEGImages/0.JPG", "  0  1"]
    spellings += [f"{tmp_path}/JPEGImages/my photo 1.jpg {tmp_path}/SegmentationClass/my photo 1.png", "./sub/2", '"0"']
    for data in (b"\xef\xbb\xbf" + "\r\n".join(spellings).encode(), "\n\n".join(spellings).encode("utf-16")):
        path.write_bytes(data)
        assert read_part(path, tmp_path, known) == known
    for text, message in (
        ("0\n\n\nzzz\n", ":4: there is no image with a mask for 'zzz'"),
        ("\n \n", ": the list is empty"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"^{path}{message}"):
            read_part(path, tmp_path, known)


def test_label_maps(tmp_path: Path) -> None:
    path, head = tmp_path / "labelmap.txt", "background:0,0,0::\nred car:128,0,0::\n\n"
    for text, expected in (
        ("\ufeff# label:color\r\nbackground:0,0,0::\r\n red car : 128, 0, 0 ::\r\n", {(0, 0, 0): 0, (128, 0, 0): 1}),
        ("red car:0,0,0::\nbackground:255,255,255::\n", {(0, 0, 0): 1, (255, 255, 255): 0}),
    ):
        path.write_bytes(text.encode())
        assert read_label_map(path) == ({1: "red car"}, expected)
    for text, message in (
        (head + "van:128,0,0::\n", ":4: the label .* or its colour is there twice"),
        (head + "red car:1,1,1::\n", ":4: the label .* or its colour is there twice"),
        (head + "hole:0,0,0::\n", ":4: the label .* or its colour is there twice"),
        ("van:1,2,300::\n", ":1: "),
        ("car:0,0,0::\nvan:9,9,9::\n", ": the label car is black, as the background is"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"^{path}{message}"):
            read_label_map(path)


def test_files_that_lie_beside_and_copies(tmp_path: Path, rng: np.random.Generator) -> None:
    for number in range(4):
        write_jpeg(tmp_path / f"JPEGImages/{number}.JPG", rng)
        label = EXPECTED * np.uint8(number % 2 + 1)
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(label).save(tmp_path / f"SegmentationClass/{number}.PNG")
    for name in ("JPEGImages/.ipynb_checkpoints/0-checkpoint.jpg", "JPEGImages/._0.jpg", ".hidden.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "JPEGImages/0.JPG").read_bytes())
    (tmp_path / "SegmentationClass/._0.png").write_bytes(b"mac")
    assert [item.name for item in read_source(tmp_path, None, 1).images] == ["0", "1", "2", "3"]
    write_jpeg(tmp_path / "JPEGImages/0.png", rng)
    with pytest.raises(UserError, match=r"0.png: 0.JPG beside it has the same name"):
        read_source(tmp_path, None, 1)
    write_lines(tmp_path / "classes.txt", ["1 cat", "2 cat"])
    with pytest.raises(UserError, match=r"classes.txt:2: the name cat is there twice"):
        read_source(tmp_path, None, 1)


def test_masks_that_are_no_index_masks(tmp_path: Path, rng: np.random.Generator) -> None:
    write_jpeg(tmp_path / "JPEGImages/a.jpg", rng)
    for kind, suffix in (("L", "jpg"), ("trimap", "png")):
        label = EXPECTED * np.uint8(255)
        if kind == "trimap":
            label[10:15, 20:50] = 128
        mask = tmp_path / f"SegmentationClass/a.{suffix}"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(label).save(mask)
        with pytest.raises(UserError, match=f"^{mask}: .*--mask binary"):
            custom(tmp_path, tmp_path / "out")
        (item,) = read_source(tmp_path, None, 1, "binary").images
        assert np.array_equal(upright_label(item) == 1, EXPECTED)
        mask.unlink()
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_left_alone(tmp_path: Path, rng: np.random.Generator) -> None:
    source = coco(tmp_path, rng, [f"{number}.jpg" for number in range(4)])
    data = tmp_path / "data"
    for name in ("JPEGImages/0.jpg", "classes.txt", "config.yaml", "ImageSets/.train.txt.7.tmp"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("mine")
    before = stamps(data)
    with pytest.raises(UserError, match="which this program did not write; give another --out"):
        custom(source, data)
    assert stamps(data) == before
    assert custom(source, tmp_path / "out") == 0
    assert custom(source, tmp_path / "out") == 0


def test_ids_that_are_text_and_annotations_without_segmentation(tmp_path: Path, rng: np.random.Generator) -> None:
    ids = ["1", "01", "001", 2, 3.0]
    images = [{"id": key, "file_name": f"{n}.jpg", "width": 100, "height": 90} for n, key in enumerate(ids)]
    keys = [1, "01", "001", "2", 3]
    annotations: list[dict[str, Any]] = [{**change("segmentation", [SQUARE]), "image_id": key} for key in keys]
    annotations += [
        {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]},
        {**change("segmentation", None), "image_id": 2},
    ]
    path = coco(tmp_path, rng, [f"{n}.jpg" for n in range(5)], images=images, annotations=annotations)
    with pytest.warns(UserWarning, match=r"annotations\[5\] encloses nothing; 2 of 7 annotations are like that"):
        found = read_source(path, None, 1).images
    assert sorted(item.name for item in found) == list("01234")
    assert all(np.array_equal(upright_label(item), EXPECTED) for item in found)


def test_splits_as_roboflow_exports_them(tmp_path: Path, rng: np.random.Generator) -> None:
    """Both parts have images of the same names, and categories of other numbers."""
    for part, count, names in (("train", 4, ["cat", "dog"]), ("valid", 3, ["dog", "cat"]), ("test", 2, ["cat", "dog"])):
        categories = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
        source = coco(tmp_path / "raw", rng, [f"{n}.jpg" for n in range(count)], categories=categories)
        (tmp_path / "src" / part).mkdir(parents=True)
        source.rename(tmp_path / "src" / part / "_annotations.coco.json")
        for n in range(count):
            write_jpeg(tmp_path / "src" / part / f"{n}.jpg", rng)
    with pytest.warns(UserWarning, match="test/_annotations.coco.json: left out"):
        found = read_source(tmp_path / "src", None, 1)
    assert found.classes == ["cat", "dog"]
    assert found.parts == {"train": {f"train/{n}" for n in range(4)}, "val": {f"val/{n}" for n in range(3)}}
    for item in found.images:
        part, number = item.name.split("/")
        expected = (int(number) % 2 + 1) if part == "train" else 2 - int(number) % 2
        assert np.array_equal(upright_label(item), EXPECTED * np.uint8(expected))
        assert item.image == tmp_path / "src" / part.replace("val", "valid") / f"{number}.jpg"
    (tmp_path / "src/valid").rename(tmp_path / "src/more")
    (tmp_path / "src/test").rename(tmp_path / "src/others")
    with pytest.raises(UserError, match="are both COCO files"):
        read_source(tmp_path / "src", None, 1)


@pytest.mark.parametrize("mask_folder", ["SegmentationClass", "masks"])
def test_masks_whose_images_are_elsewhere(tmp_path: Path, rng: np.random.Generator, mask_folder: str) -> None:
    for number in range(4):
        write_jpeg(tmp_path / f"elsewhere/IMG_{number}.JPG", rng)
        (tmp_path / "src" / mask_folder).mkdir(parents=True, exist_ok=True)
        label = EXPECTED * np.uint8(number % 2 + 1)
        Image.fromarray(label).save(tmp_path / "src" / mask_folder / f"img_{number}.png")
    with pytest.raises(UserError, match=f"{mask_folder}.*--images DIR"):
        read_source(tmp_path / "src", None, 1)
    with pytest.raises(UserError, match="--images .*nowhere: no such folder"):
        read_source(tmp_path / "src", tmp_path / "nowhere", 1)
    found = read_source(tmp_path / "src", tmp_path / "elsewhere", 1)
    assert [item.image.name for item in found.images] == [f"IMG_{number}.JPG" for number in range(4)]


def test_names_in_other_letters(tmp_path: Path, rng: np.random.Generator) -> None:
    """Exports and files of different systems: accents composed or not, upper and lower case."""
    write_jpeg(tmp_path / "e\u0301t\u00c9.JPG", rng)
    for stated in ("\u00e9t\u00e9.jpg", "e\u0301te\u0301.jpg", "C:\\x\\\u00c9T\u00c9.Jpg"):
        assert find_image(stated, [tmp_path]) == tmp_path / "e\u0301t\u00c9.JPG"
    labelme(tmp_path / "\u00e9T\u00e9.json", corners(), imagePath="old.jpg")
    assert read_source(tmp_path, None, 1).images[0].image == tmp_path / "e\u0301t\u00c9.JPG"
    write_jpeg(tmp_path / "E\u0301T\u00c9.jpg", rng)
    assert find_image("\u00e9t\u00e9.jpg", [tmp_path]) is None

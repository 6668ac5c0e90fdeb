import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prediction.support import read_support, select
from util.errors import UserError


def write(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def photo(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng().integers(0, 256, (height, width, 3), dtype=np.uint8)


def index(*values: int, height: int = 20, width: int = 30) -> np.ndarray:
    """A mask with a random rectangle of each value, side by side."""
    rng = np.random.default_rng()
    mask = np.zeros((height, width), np.uint8)
    for number, value in enumerate(values):
        left, step = number * width // len(values), width // len(values)
        mask[rng.integers(0, 9) : rng.integers(10, 20), left : left + rng.integers(1, step + 1)] = value
    return mask


def write_labelme(path: Path, image: str, *labels: str, height: int = 20, width: int = 30) -> None:
    shapes = [
        {"label": label, "points": [[2 + 5 * i, 3], [5 + 5 * i, 12]], "shape_type": "rectangle"}
        for i, label in enumerate(labels)
    ]
    path.write_text(json.dumps({"imagePath": image, "imageHeight": height, "imageWidth": width, "shapes": shapes}))


@pytest.mark.parametrize("value", [1, 15, 255])
def test_one_class_without_a_name(tmp_path: Path, value: int) -> None:
    masks = {f"{n}.jpg": index(value) for n in "ab"} | {"c.png": index(value)}
    for name, mask in masks.items():
        write(tmp_path / name, photo())
        write(tmp_path / (f"{name[0]}_mask.png" if name == "c.png" else f"{name[0]}.png"), mask)
    (only,) = read_support(tmp_path)
    assert (only.name, only.value) == ("object", 1 if value == 255 else value)
    assert [path.name for path in only.images] == list(masks)
    for read, mask in zip(only.masks, masks.values(), strict=True):
        assert np.array_equal(read, mask == value)


def test_every_value_is_a_class(tmp_path: Path) -> None:
    first, second = index(3, 15, 255), index(15)
    for name, mask in (("a", first), ("b", second)):
        write(tmp_path / f"{name}.jpg", photo())
        palette = Image.fromarray(mask).convert("P")
        palette.save(tmp_path / f"{name}.png")
    three, fifteen = read_support(tmp_path)
    assert (three.name, three.value, len(three.images)) == ("class_3", 3, 1)
    assert (fifteen.name, fifteen.value, len(fifteen.images)) == ("class_15", 15, 2)
    assert np.array_equal(fifteen.masks[0], np.where(first == 255, 255, first == 15))
    assert np.array_equal(fifteen.masks[1], second == 15)
    (tmp_path / "classes.txt").write_text("3 cat\n15 sea lion\n20 train\n")
    support = read_support(tmp_path)
    assert [item.name for item in support] == ["cat", "sea lion"]
    assert [item.name for item in select(support, ["sea lion"])] == ["sea lion"]
    assert [item.name for item in select(support, ["3", "sea lion"])] == ["cat", "sea lion"]
    with pytest.raises(UserError, match=r"'train' is not among .*cat \(3\), sea lion \(15\)"):
        select(support, ["train"])
    (tmp_path / "classes.txt").write_text("3 cat\n")
    with pytest.raises(UserError, match=r"no name for the value 15"):
        read_support(tmp_path)


def test_a_subfolder_for_each_class(tmp_path: Path) -> None:
    for name, value in (("dog", 255), ("cat", 7)):
        write(tmp_path / name / "a.jpg", photo())
        write(tmp_path / name / "a.png", index(value))
    (tmp_path / ".cache").mkdir()
    assert [(item.name, item.value) for item in read_support(tmp_path)] == [("cat", 1), ("dog", 2)]
    write(tmp_path / "cat" / "b.jpg", photo())
    write(tmp_path / "cat" / "b.png", index(8))
    with pytest.raises(UserError, match=r"cat: marks class_7, class_8, but a subfolder is one class"):
        read_support(tmp_path)


def test_class_folders_without_images_of_their_own(tmp_path: Path) -> None:
    for name in ("cat/x", "dog/batch1"):
        write(tmp_path / name / "a.jpg", photo())
        write(tmp_path / name / "a.png", index(255))
    with pytest.raises(UserError, match=rf"cat/x: a class is one folder; move these images into {tmp_path}/cat$"):
        read_support(tmp_path)
    for path in (tmp_path / "cat/x").iterdir():
        path.rename(tmp_path / "cat" / path.name)
    with pytest.raises(UserError, match=r"dog/batch1: a class is one folder"):
        read_support(tmp_path)
    for path in (tmp_path / "dog/batch1").iterdir():
        path.unlink()
    (tmp_path / "__MACOSX").mkdir()  # which is none
    with pytest.raises(UserError, match=r"dog: a class without images; put some with masks in, or remove"):
        read_support(tmp_path)


def test_supports_of_no_class_and_of_too_many(tmp_path: Path) -> None:
    for number in range(255):
        (tmp_path / f"folders/c{number}").mkdir(parents=True)
    write(tmp_path / "folders/c1/a.jpg", photo())
    lines = "".join(f"a.jpg,1,2,3,4,c{number}\n" for number in range(255))
    (tmp_path / "boxes.csv").write_text(f"file,left,top,right,bottom,class\n{lines}")
    for boxes, named in ((None, "folders"), (tmp_path / "boxes.csv", "boxes.csv")):
        with pytest.raises(UserError, match=rf"{named}: has 255 classes, and masks tell at most 254 apart"):
            read_support(tmp_path / "folders", boxes)
    write(tmp_path / "export/a.jpg", photo())
    images = [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    (tmp_path / "export/coco.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"coco\.json: marks no object; annotate one"):
        read_support(tmp_path / "export")


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.png", photo())
    write(tmp_path / "b.jpg", photo())
    write(tmp_path / "without.jpg", photo())
    write_labelme(tmp_path / "a.json", "a.png", "dog", "cat")
    write_labelme(tmp_path / "b.json", "b.jpg", "dog")
    cat, dog = read_support(tmp_path)
    assert (cat.name, cat.value, cat.images) == ("cat", 1, [tmp_path / "a.png"])
    assert (dog.name, dog.value, dog.images) == ("dog", 2, [tmp_path / "a.png", tmp_path / "b.jpg"])
    assert re.search(r"1 images without an annotation .* first is .*/without\.jpg$", capsys.readouterr().out, re.M)
    expected = np.zeros((20, 30), bool)
    expected[3:13, 7:11] = True
    assert np.array_equal(cat.masks[0], expected)
    write(tmp_path / "b.png", index(1))
    with pytest.raises(UserError, match=r"b\.png is a mask, a\.json an annotation; remove one kind"):
        read_support(tmp_path)


def test_a_mask_of_the_pixels_as_they_are_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    mask = index(1)
    write(tmp_path / "a.jpg", photo(), exif=exif)
    write(tmp_path / "a.png", mask)
    assert np.array_equal(read_support(tmp_path)[0].masks[0], np.rot90(mask, -1))
    write(tmp_path / "a.png", np.rot90(mask, -1))
    assert np.array_equal(read_support(tmp_path)[0].masks[0], np.rot90(mask, -1))


def test_boxes(tmp_path: Path) -> None:
    file = tmp_path / "boxes.csv"
    file.write_text('file,left,top,right,bottom\na.jpg,1,2,3.5,4\n"b, c.jpg",5,6,7,8\na.jpg,9,10,11,12\n')
    (only,) = read_support(tmp_path, file)
    assert (only.name, only.value) == ("object", 1)
    assert only.images == [tmp_path / "a.jpg", tmp_path / "b, c.jpg"]
    assert only.masks == [[(1, 2, 3.5, 4), (9, 10, 11, 12)], [(5, 6, 7, 8)]]
    file.write_text("file, left, top, right, bottom, class\na.jpg,1,2,3,4,dog\na.jpg,5,6,7,8,cat\n")
    assert [(item.name, item.value, item.masks) for item in read_support(tmp_path, file)] == [
        ("cat", 1, [[(5, 6, 7, 8)]]),
        ("dog", 2, [[(1, 2, 3, 4)]]),
    ]
    for wrong, line in (("1,2,3", 2), ("1,2,3,x", 2), ("1,2,3,nan", 2)):
        file.write_text(f"file,left,top,right,bottom\na.jpg,{wrong}\n")
        with pytest.raises(UserError, match=rf"boxes\.csv:{line}: should be file,left,top,right,bottom"):
            read_support(tmp_path, file)
    file.write_text("a.jpg,1,2,3,4\na.jpg,1,2,3,4\n")
    with pytest.raises(UserError, match=r"boxes\.csv:2: .*as the first line"):
        read_support(tmp_path, file)
    file.write_text("file,left,top,right,bottom,label\na.jpg,1,2,3,4,dog\n")
    with pytest.raises(UserError, match=r"boxes\.csv:1: the column 'label' is not known; should be .* perhaps class"):
        read_support(tmp_path, file)
    file.write_text("")
    with pytest.raises(UserError, match="no boxes"):
        read_support(tmp_path, file)
    with pytest.raises(UserError, match=r"absent\.csv: no readable CSV file"):
        read_support(tmp_path, tmp_path / "absent.csv")


def test_what_does_not_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "support"
    with pytest.raises(UserError, match="no such folder"):
        read_support(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="no images"):
        read_support(folder)
    for name in ("alone.jpg", "single.png", "twice.jpg", "twice.bmp", "twice.png"):
        write(folder / name, photo())
    with pytest.raises(UserError, match="3 images failed"):
        read_support(folder)
    printed = capsys.readouterr().err
    assert "alone.jpg: has no mask; put alone.png beside it" in printed
    assert "single.png: has no mask; put single_mask.png beside it" in printed
    assert "twice.bmp: twice.jpg and twice.png have its name too; rename one" in printed
    for path in folder.iterdir():
        path.unlink()
    masks = {"empty": index(), "small": index(1)[:10], "coloured": np.dstack([index(1), index(9), index(7, 2)])}
    for name, mask in masks.items():
        write(folder / f"{name}.jpg", photo())
        write(folder / f"{name}.png", mask)
    write(folder / "torn.jpg", photo())
    (folder / "torn.png").write_bytes((folder / "small.png").read_bytes()[:45])
    with pytest.raises(UserError, match="4 images failed"):
        read_support(folder)
    printed = capsys.readouterr().err
    assert "empty.jpg: its annotation marks no object" in printed
    assert "small.jpg is 30x20, its annotation 30x10; make them equal" in printed
    assert "coloured.png: a mask in" in printed
    assert "torn.png: not a readable mask" in printed


def test_the_mask_is_the_file_that_looks_like_one(tmp_path: Path) -> None:
    mask = index(255)
    write(tmp_path / "a.png", photo())
    write(tmp_path / "a.jpg", mask, quality=90)
    write(tmp_path / "b.jpg", photo())
    write(tmp_path / "b.PNG", mask)
    with pytest.warns(UserWarning, match=r"a.jpg: \d+ shades are taken for one object .*--mask"):
        (only,) = read_support(tmp_path)
    assert [path.name for path in only.images] == ["a.png", "b.jpg"]
    assert (only.masks[0] != (mask > 0)).mean() < 0.02 and np.array_equal(only.masks[1], mask > 0)
    write(tmp_path / "a.png", mask)
    with pytest.raises(UserError, match=r"a.jpg, a.png: both look like a mask; call the one that is a_mask.png"):
        read_support(tmp_path)
    write(tmp_path / "a.bmp", photo())
    (tmp_path / "a.png").unlink()
    write(tmp_path / "a.jpg", photo())
    with pytest.raises(UserError, match=r"a.bmp, a.jpg: neither looks like a mask"):
        read_support(tmp_path)


def test_masks_of_several_kinds_in_one_folder(tmp_path: Path) -> None:
    for name, mask in (("a", index(255)), ("b", index(2))):
        write(tmp_path / f"{name}.jpg", photo())
        write(tmp_path / f"{name}.png", mask)
    with pytest.raises(UserError, match=r"a.png: marks one object, b.png classes by number; .*--mask"):
        read_support(tmp_path)
    assert [item.value for item in read_support(tmp_path, kind="binary")] == [1]
    for name, color in (("a", (200, 10, 0)), ("b", (0, 10, 200))):
        write(tmp_path / f"{name}.png", ((index(1) > 0)[..., None] * np.array(color)).astype(np.uint8))
    with pytest.raises(UserError, match=r"b.png: its object has another colour than that of a.png"):
        read_support(tmp_path)


def test_names_of_classes(tmp_path: Path) -> None:
    for name in ("cat", ".cat", "x"):
        write(tmp_path / name / "a.jpg", photo())
        write(tmp_path / name / "a.png", index(255))
        write(tmp_path / name / "._a.jpg", photo())
    assert [item.name for item in read_support(tmp_path)] == ["cat", "x"]
    (tmp_path / "x").rename(tmp_path / "cat ")
    with pytest.raises(UserError, match="two subfolders are called the same but for blanks"):
        read_support(tmp_path)
    (tmp_path / "cat ").rename(tmp_path / "evil\n7 x")
    with pytest.raises(UserError, match="is no name for a class"):
        read_support(tmp_path)
    write(tmp_path / "b.jpg", photo())
    write(tmp_path / "b.png", index(255))
    with pytest.raises(UserError, match=r"holds b.jpg and images in cat/; leave one kind there"):
        read_support(tmp_path)


def test_boxes_as_spreadsheets_write_them(tmp_path: Path) -> None:
    write(tmp_path / "sub/a.jpg", photo())
    file = tmp_path / "boxes.csv"
    file.write_bytes(b"\xef\xbb\xbffile , left,top , right,bottom , class\r\n\r\nsub\\a.jpg, 1,2,3,4 , cat \r\n")
    assert read_support(tmp_path, file) == [("cat", 1, [tmp_path / "sub/a.jpg"], [[(1, 2, 3, 4)]])]
    for row in ("a.jpg\0,1,2,3,4,cat", "a.jpg,1,2,3", '"a\nb.jpg",1,2,3,4,cat', "a.jpg,1,2,3,4,cat,more"):
        file.write_text(f"file,left,top,right,bottom,class\n\n\nsub/a.jpg,1,2,3,4,cat\n{row}\n")
        with pytest.raises(UserError, match=r"boxes\.csv:5: "):
            read_support(tmp_path, file)


def test_pairs_in_other_letters(tmp_path: Path) -> None:
    """Accents as macOS writes them, and upper and lower case; two that differ in case only are two."""
    for image, mask in (("cafe\u0301.jpg", "caf\u00e9.png"), ("IMG_1.JPG", "img_1.png"), ("B.png", "b_Mask.png")):
        write(tmp_path / image, photo())
        write(tmp_path / mask.replace("Mask", "mask"), index(255))
    for name in ("x", "X"):
        write(tmp_path / f"{name}.jpg", photo())
        write(tmp_path / f"{name}.png", index(255))
    (only,) = read_support(tmp_path)
    assert {path.name for path in only.images} == {"cafe\u0301.jpg", "IMG_1.JPG", "B.png", "x.jpg", "X.jpg"}


def test_a_tiff_that_is_turned_and_its_mask(tmp_path: Path) -> None:
    mask = index(1)
    for turn in range(1, 9):
        Image.fromarray(photo(*((30, 20) if turn > 4 else (20, 30)))).save(tmp_path / "a.tif", tiffinfo={274: turn})
        write(tmp_path / "a.png", mask)
        assert np.array_equal(read_support(tmp_path)[0].masks[0], mask)


def test_exports_that_custom_takes(tmp_path: Path) -> None:
    write(tmp_path / "images/a.jpg", photo())
    square = [2, 3, 10, 3, 10, 9, 2, 9]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 5, "segmentation": [square]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    (cat,) = read_support(tmp_path)
    assert cat.name == "cat" and cat.masks[0][3:9, 2:10].all() and cat.masks[0].sum() == 48
    (tmp_path / "coco.json").unlink()
    write(tmp_path / "masks/a.png", index(255))
    assert [(item.name, len(item.images)) for item in read_support(tmp_path)] == [("object", 1)]

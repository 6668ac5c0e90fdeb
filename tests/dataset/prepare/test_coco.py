"""COCO-20i from raw archives, with masks compared pixel for pixel with what was drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dataset.prepare.test_pascal import stamps
from tests.dataset.prepare.trees import Raw
from tests.server import Server
from tools.prepare import main
from util.errors import UserError


def prepare(tmp_path: Path, workers: int = 1) -> None:
    root, archives = str(tmp_path / "root"), str(tmp_path / "archives")
    assert main(["coco", "--root", root, "--archives", archives, "--workers", str(workers)]) == 0


def unpack_by_hand(raw: Raw, tmp_path: Path) -> None:
    for archive in raw.archives:
        shutil.unpack_archive(archive, tmp_path / "root")
        archive.unlink()


def assert_built(root: Path, raw: Raw) -> None:
    for part, names in (("train", raw.train), ("val", raw.val)):
        lines = (root / f"ImageSets/{part}.txt").read_text().splitlines()
        folder = f"{part}2014"
        assert lines == [f"{folder}/{name}.jpg annotations/{folder}/{name}.png" for name in names]
        for name in names:
            mask = Image.open(root / f"annotations/{folder}/{name}.png")
            assert mask.mode == "L"
            np.testing.assert_array_equal(np.array(mask), raw.masks[name])


def test_from_archives_on_disk_once_and_repaired(raw_coco: Raw, tmp_path: Path) -> None:
    prepare(tmp_path, workers=2)
    root = tmp_path / "root"
    assert_built(root, raw_coco)
    assert not (root / "annotations/captions_val2014.json").exists()
    before = stamps(root)
    for archive in raw_coco.archives:
        archive.unlink()
    prepare(tmp_path)
    assert stamps(root) == before
    cut = root / f"annotations/val2014/{raw_coco.val[1]}.png"
    cut.write_bytes(cut.read_bytes()[:-5])
    (root / f"annotations/train2014/{raw_coco.train[0]}.png").unlink()
    prepare(tmp_path)
    assert_built(root, raw_coco)


def test_by_download(raw_coco: Raw, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.break_after = [500, 700]
    root = tmp_path / "root"
    assert main(["coco", "--root", str(root), "--mirror", f"{server.url}/", "--workers", "1"]) == 0
    assert_built(root, raw_coco)
    assert len(server.requests) == 5


def test_files_at_fault_are_named(raw_coco: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unpack_by_hand(raw_coco, tmp_path)
    root = tmp_path / "root"
    path = root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    images = {Path(image["file_name"]).stem: image for image in content["images"]}
    narrow, lost = raw_coco.train[:2]
    whole = json.dumps(content)
    for item in content["annotations"]:
        item["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    images[narrow]["width"] = 99
    path.write_text(json.dumps(content))
    (root / f"train2014/{lost}.jpg").unlink()
    with pytest.raises(UserError, match="2 annotations failed"):
        prepare(tmp_path)
    err = capsys.readouterr().err
    assert f"{narrow}.jpg is 100x90, its annotation 99x90; make them equal\n" in err
    assert f"{lost}.jpg: no such image\n" in err
    for name in ("../evil.jpg", "/evil.jpg", "a\\b.jpg", "my photo.jpg", ".hidden.jpg", "bell\x07.jpg"):
        content = json.loads(whole)
        content["images"][2]["file_name"] = name
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="is no plain one; not the official file"):
            prepare(tmp_path)


def test_damaged_annotations_are_named(raw_coco: Raw, tmp_path: Path) -> None:
    unpack_by_hand(raw_coco, tmp_path)
    path = tmp_path / "root/annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    whole = json.dumps(content)
    gone = content["categories"].pop()["id"]
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] != gone]
    few, content = json.dumps(content), json.loads(whole)
    content["annotations"][3]["segmentation"] = {"size": [90, 100], "counts": [5, -7]}
    for text, message in (
        (whole[:1000], "is no JSON file"),
        (few, "has 79 categories instead of 80"),
        (json.dumps(content), r"annotations\[3\].segmentation: .*greater than"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"instances_val2014.json:? ?{message}"):
            prepare(tmp_path)

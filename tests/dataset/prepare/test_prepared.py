"""Prepared data of others, from archives of any name and nesting, to the same lists and masks as the official."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dataset.prepare.trees import Raw, pack
from tools.prepare import main
from util.errors import UserError

WANTED = {
    "pascal": ("JPEGImages", "SegmentationClassAug", "ImageSets/Main", "ImageSets/Segmentation"),
    "coco": ("train2014", "val2014", "annotations/train2014", "annotations/val2014"),
}


def prepare(name: str, tmp_path: Path, archives: str, root: str) -> int:
    places = ["--root", str(tmp_path / root), "--archives", str(tmp_path / archives)]
    return main([name, *places, "--workers", "1"])


@pytest.mark.parametrize(("name", "suffix"), [("pascal", ".zip"), ("coco", ".tgz")])
def test_prepared_data_is_as_good(
    name: str, suffix: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw: Raw = request.getfixturevalue(f"raw_{name}")
    prepare(name, tmp_path, "archives", "first")
    nested = tmp_path / "others/OneDrive/data"
    for folder in WANTED[name]:
        for path in (tmp_path / "first" / folder).iterdir():
            copy = nested / folder / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png" and not path.stem.endswith("7"):  # others keep a palette
                image = Image.open(path)
                image.putpalette([channel for value in range(256) for channel in (value, 0, 255 - value)])
                image.save(copy)
            elif path.is_file():
                copy.write_bytes(path.read_bytes())
    (nested / "run.sh").write_text("exit 1")
    pack(tmp_path / f"given/OneDrive_2024{suffix}", tmp_path / "others")
    for _ in range(2):
        assert prepare(name, tmp_path, "given", "second") == 0
    for part, names in (("train", raw.train), ("val", raw.val)):
        lines = (tmp_path / f"second/ImageSets/{part}.txt").read_text().splitlines()
        assert sorted(lines) == sorted((tmp_path / f"first/ImageSets/{part}.txt").read_text().splitlines())
        assert len(lines) == len(names)
        for line in lines:
            first, second = (np.array(Image.open(tmp_path / root / line.split()[1])) for root in ("first", "second"))
            np.testing.assert_array_equal(first, second)
    assert not list((tmp_path / "second").rglob("run.sh"))
    lost = tmp_path / "second" / lines[0].split()[0]
    lost.unlink()
    (tmp_path / f"given/OneDrive_2024{suffix}").unlink()
    with pytest.raises(UserError, match=f"{lost} is missing"):
        prepare(name, tmp_path, "given", "second")


def test_official_archives_come_first(raw_pascal: Raw, tmp_path: Path) -> None:
    """An archive of something else beside them is not even opened."""
    (tmp_path / "archives/other.zip").write_bytes(b"no archive")
    assert prepare("pascal", tmp_path, "archives", "root") == 0

"""PASCAL-5i from raw archives, with masks compared pixel for pixel with what was drawn."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import SBDataset

from tests.dataset.prepare.trees import SIZE, Raw, write_jpeg
from tests.server import Server
from tools.prepare import main
from util.errors import UserError


def prepare(tmp_path: Path, *words: str) -> None:
    root, archives = str(tmp_path / "root"), str(tmp_path / "archives")
    assert main(["pascal", "--root", root, "--archives", archives, "--workers", "1", *words]) == 0


def unpack_by_hand(raw: Raw, tmp_path: Path) -> Path:
    for archive in raw.archives:
        shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
        archive.unlink()
    (tmp_path / "unpacked/VOCdevkit/VOC2012").rename(tmp_path / "root")
    (tmp_path / "unpacked/benchmark_RELEASE/dataset").rename(tmp_path / "root/SBD")
    return tmp_path / "root"


def assert_built(root: Path, raw: Raw) -> None:
    for part, names in (("train", raw.train), ("val", raw.val)):
        lines = (root / f"ImageSets/{part}.txt").read_text().splitlines()
        assert lines == [f"JPEGImages/{name}.jpg SegmentationClassAug/{name}.png" for name in names]
        for line in lines:
            image, mask = line.split()
            assert Image.open(root / image).size == SIZE
            assert Image.open(root / mask).mode == "L"
            np.testing.assert_array_equal(np.array(Image.open(root / mask)), raw.masks[Path(image).stem])


def stamps(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_from_archives_on_disk(raw_pascal: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, "--workers", "2")
    assert_built(tmp_path / "root", raw_pascal)
    assert not (tmp_path / "root/Annotations").exists()
    out = capsys.readouterr().out
    assert f"train.txt: {len(raw_pascal.train)} images, should be 5953" in out
    assert f"val.txt: {len(raw_pascal.val)} images, should be 1449" in out
    before = stamps(tmp_path / "root")
    for archive in raw_pascal.archives:
        archive.unlink()
    prepare(tmp_path)
    assert stamps(tmp_path / "root") == before
    assert capsys.readouterr().out.startswith("0 of ")


def test_repairs_damage(raw_pascal: Raw, tmp_path: Path) -> None:
    prepare(tmp_path)
    root = tmp_path / "root"
    gone, cut, flipped = (root / f"SegmentationClassAug/{name}.png" for name in raw_pascal.train[:3])
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-20])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (root / f"JPEGImages/{raw_pascal.val[0]}.jpg").unlink()
    (root / f"SBD/cls/{raw_pascal.train[0]}.mat").write_bytes(b"")
    (root / "ImageSets/train.txt").unlink()
    before = stamps(root)
    prepare(tmp_path)
    assert_built(root, raw_pascal)
    changed = {path for path, stamp in stamps(root).items() if before.get(path) != stamp and path.is_file()}
    assert {gone, cut, flipped, root / "ImageSets/train.txt"} <= changed
    assert len(changed) <= 9  # and the image, the .mat, the two records of archives, the counts of classes


def test_by_download(
    raw_pascal: Raw, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.break_after = [10_000, 20_000]
    root = tmp_path / "root"
    assert main(["pascal", "--root", str(root), "--download", "--mirror", server.url, "--workers", "1"]) == 0
    assert_built(root, raw_pascal)
    assert [wanted for _, wanted in server.requests] == [None, "bytes=10000-", "bytes=30000-", None]
    assert {path.name for path in (root / "archives").iterdir()} == {path.name for path in raw_pascal.archives}


def test_archives_of_other_checksums(raw_pascal: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, or packed anew."""
    monkeypatch.setattr(SBDataset, "md5", "0" * 32)
    with pytest.raises(UserError, match=f"{raw_pascal.archives[1]} is damaged or not the official file"):
        prepare(tmp_path)
    assert not (tmp_path / "root/SBD").exists()
    prepare(tmp_path, "--no-checksum")
    assert_built(tmp_path / "root", raw_pascal)


def test_files_at_fault_are_named_and_the_others_done(
    raw_pascal: Raw, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    root = unpack_by_hand(raw_pascal, tmp_path)
    lost, cut, wide, broken, *_ = raw_pascal.train
    (root / f"JPEGImages/{lost}.jpg").unlink()
    image = root / f"JPEGImages/{cut}.jpg"
    image.write_bytes(image.read_bytes()[:-100])
    write_jpeg(root / f"JPEGImages/{wide}.jpg", rng, (123, 45))
    (root / f"SBD/cls/{broken}.mat").write_bytes(b"not MATLAB")
    with pytest.raises(UserError, match="4 annotations failed"):
        prepare(tmp_path)
    err = capsys.readouterr().err
    assert f"JPEGImages/{lost}.jpg: no such image\n" in err
    assert f"JPEGImages/{cut}.jpg: not a readable image" in err
    assert f"{wide}.mat: mask is 100x90, its image {root}/JPEGImages/{wide}.jpg is 123x45; make them equal\n" in err
    assert f"{broken}.mat is damaged" in err
    written = {path.stem for path in (root / "SegmentationClassAug").iterdir()}
    assert written == set(raw_pascal.train + raw_pascal.val) - {lost, cut, wide, broken}


def test_without_main_validation_list(raw_pascal: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = unpack_by_hand(raw_pascal, tmp_path)
    (root / "ImageSets/Main/val.txt").unlink()
    prepare(tmp_path)
    assert "ImageSets/Main/val.txt is missing: only the segmentation validation images" in capsys.readouterr().out
    assert len((root / "ImageSets/train.txt").read_text().splitlines()) == len(raw_pascal.train) + 4

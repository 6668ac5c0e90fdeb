"""Verification names what is missing or damaged and compares with the known sizes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.prepare import known
from dataset.prepare.files import check_image
from tests.dataset.prepare.trees import Raw, random_label, write_jpeg, write_lines
from tools.prepare import main


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A data set of four classes in tmp_path/own, nine images of each, and its config."""
    root = tmp_path / "own"
    pairs = []
    for number in range(36):
        write_jpeg(root / f"JPEGImages/{number}.jpg", rng)
        mask = root / f"SegmentationClassAug/{number}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_label(rng, [number % 4 + 1])).save(mask)
        pairs.append(f"JPEGImages/{number}.jpg SegmentationClassAug/{number}.png")
    write_lines(root / "ImageSets/train.txt", pairs[:24])
    write_lines(root / "ImageSets/val.txt", pairs[24:])
    write_lines(root / "classes.txt", ["1 fox", "2 hen", "3 cow", "4 dog"])
    write_lines(root / "c.yaml", ["data_set: own", f"data_root: {root}", "num_classes: 4", "folds: 2"])
    return root


def check(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["check", "--config", str(root / "c.yaml"), "--workers", "1", *words])
    return code, capsys.readouterr().out


def test_all_is_well(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check(data, capsys)
    assert code == 0 and "WRONG" not in out
    assert "ok     training files: 24 of 24 pairs are whole" in out
    assert "ok     fold 1, training images: 12" in out  # of 24, those of two of four classes
    assert "ok     fold 1, validation images: 6" in out
    small = ("--opts", "train_h", "17", "train_w", "17")  # images are larger than the crop
    code, out = check(data, capsys, *small)
    assert code == 0 and "note   images of" in out and "set max_side" in out and "All is well." in out
    assert "note" not in check(data, capsys, *small, "max_side", "18")[1]


def test_every_file_at_fault_is_named(data: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    masks, images = data / "SegmentationClassAug", data / "JPEGImages"
    (masks / "0.png").unlink()
    (masks / "1.png").write_bytes((masks / "1.png").read_bytes()[:-30])
    content = bytearray((masks / "2.png").read_bytes())
    content[-14] ^= 1  # in the checksum of the pixels, which Pillow does not look at when it decodes
    (masks / "2.png").write_bytes(content)
    Image.fromarray(np.ones((5, 6), np.uint8)).save(masks / "3.png")
    Image.fromarray(np.full((90, 100), 5, np.uint8)).save(masks / "4.png")
    (images / "5.jpg").write_bytes((images / "5.jpg").read_bytes()[:-60])
    (images / "6.jpg").write_bytes(b"nothing")
    Image.new("RGB", (100, 90)).save(masks / "7.png")
    code, out = check(data, capsys)
    assert code == 1
    assert "WRONG  training files: 16 of 24 pairs are whole" in out
    assert "ok     validation files: 12 of 12 pairs are whole" in out
    for text in (
        f"{masks}/0.png: no such mask",
        f"{masks}/1.png: not a readable mask",
        f"{masks}/2.png",
        f"{masks}/3.png: mask is 6x5, its image {images}/3.jpg is 100x90",
        f"{masks}/4.png holds class 5, of 4",
        f"{images}/5.jpg: not a readable image",
        f"{images}/6.jpg: not a readable image (it is no image)",
        f"{masks}/7.png: mask holds RGB pixels",
    ):
        assert f"WRONG  {text}" in out


def test_missing_files_and_many_complaints(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "JPEGImages/30.jpg").unlink()
    (data / "JPEGImages/32.jpg").unlink()
    (data / "ImageSets/train.txt").rename(data / "train.txt")
    code, out = check(data, capsys)
    assert code == 1
    assert f"WRONG  {data}/JPEGImages/30.jpg: no such image\nWRONG  {data}/JPEGImages/32.jpg: no such image\n" in out
    assert f"WRONG  training list: {data}/ImageSets/train.txt: no readable list file" in out
    (data / "train.txt").rename(data / "ImageSets/train.txt")
    for mask in (data / "SegmentationClassAug").iterdir():
        mask.unlink()
    assert "WRONG  ... and 4 more" in check(data, capsys)[1]


def test_too_few_images_for_an_episode(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (data / "ImageSets/val.txt").read_text().splitlines()
    write_lines(data / "ImageSets/val.txt", [line for i, line in enumerate(lines) if i % 4 != 2 or i == 2])
    code, out = check(data, capsys)
    assert code == 1 and out.count("WRONG") == 1
    assert "WRONG  fold 1, validation images of class 3 cow: 1, an episode needs 2 at least" in out


def test_known_sizes(
    raw_pascal: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes counted in the masks that were drawn agree; one that does not is told, and so are the true data's."""
    root = tmp_path / "root"
    assert main(["pascal", "--root", str(root), "--archives", str(tmp_path / "archives"), "--workers", "1"]) == 0
    assert main(["check", "pascal", "--root", str(root), "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert f"WRONG  training list, images: {len(raw_pascal.train)}, should be 5953" in out
    counting = {
        name: {v for v in range(1, 21) if (raw_pascal.masks[name] == v).sum() >= 2048} for name in raw_pascal.masks
    }
    present = {name: set(np.unique(mask)) - {0, 255} for name, mask in raw_pascal.masks.items()}
    folds = [set(range(5 * i + 1, 5 * i + 6)) for i in range(4)]
    sizes = {
        "train": tuple(sum(bool(counting[n]) and not present[n] & fold for n in raw_pascal.train) for fold in folds),
        "val": tuple(sum(bool(counting[n] & fold) for n in raw_pascal.val) for fold in folds),
    }
    classes = [[sum(v in counting[n] for n in raw_pascal.val) for v in sorted(fold)] for fold in folds]
    monkeypatch.setitem(known.LIST_SIZES, "pascal", {"train": len(raw_pascal.train), "val": len(raw_pascal.val)})
    monkeypatch.setitem(known.FOLD_SIZES, "pascal", sizes)
    monkeypatch.setitem(known.CLASS_SIZES, "pascal", classes)
    monkeypatch.setattr("dataset.prepare.check.LEAST", 0)  # so small a data set has no episodes
    assert main(["check", "pascal", "--root", str(root), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out
    assert f"ok     fold 3, validation images of class 16 pottedplant: {classes[3][0]}" in out
    classes[2][4] += 1
    assert main(["check", "pascal", "--root", str(root), "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert f"WRONG  fold 2, validation images of class 15 person: {classes[2][4] - 1}, should be {classes[2][4]}" in out


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 30), (8, 9)])
def test_images_below_the_coarsest_scale_are_whole(width: int, height: int, tmp_path: Path) -> None:
    Image.new("RGB", (width, height), "red").save(tmp_path / "a.jpg")
    assert check_image(tmp_path / "a.jpg") == (height, width)

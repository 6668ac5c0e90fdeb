"""Class maps read from every format, compared with what was drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from dataset.prepare.annotations import RunLengths, decode_segmentation, paint, unpack_runs
from dataset.prepare.image import read_label
from dataset.prepare.pascal import read_sbd
from tests.dataset.prepare.trees import (
    SIZE,
    VOC_BORDER,
    VOC_PALETTE,
    random_label,
    run_lengths,
    write_palette_png,
    write_sbd_mat,
)
from util.errors import UserError
from util.mask import voc_colours


@pytest.fixture
def label(rng: np.random.Generator) -> np.ndarray:
    return random_label(rng, rng.integers(1, 21, 4).tolist(), border=True)


def test_palette_index(tmp_path: Path, label: np.ndarray) -> None:
    write_palette_png(tmp_path / "a.png", label)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), label)


def test_colours_of_voc(tmp_path: Path, label: np.ndarray) -> None:
    colours = np.array(VOC_PALETTE + [(0, 0, 0)] * (255 - len(VOC_PALETTE)) + [VOC_BORDER], dtype=np.uint8)
    Image.fromarray(colours[label]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), label)
    assert len(voc_colours()) == 256


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint8, "png"), (np.uint16, "png"), (np.int32, "tif")])
def test_grey_values(tmp_path: Path, label: np.ndarray, dtype: type, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(label.astype(dtype)).save(path)
    read = read_label(path)
    np.testing.assert_array_equal(read, label)
    assert read.dtype == np.uint8


def test_colours_of_ones_own_overrule_the_palette_index(tmp_path: Path, label: np.ndarray) -> None:
    write_palette_png(tmp_path / "a.png", label)
    own = {colour: 20 - value for value, colour in enumerate(VOC_PALETTE)} | {VOC_BORDER: 77}
    expected = np.where(label == 255, 77, 20 - label)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png", own), expected)


def test_unknown_colours_and_values_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match=r"colour.png: the colour \(1, 2, 3\) stands for no class"):
        read_label(tmp_path / "colour.png", {(0, 0, 0): 0})
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "high.png")
    with pytest.raises(UserError, match=r"high.png: the value 300 is no class"):
        read_label(tmp_path / "high.png")


def test_damaged_image_is_named(tmp_path: Path, label: np.ndarray) -> None:
    write_palette_png(tmp_path / "a.png", label)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"a.png: not a readable mask"):
        read_label(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"b.png: no such mask"):
        read_label(tmp_path / "b.png")


def test_sbd(tmp_path: Path, label: np.ndarray) -> None:
    write_sbd_mat(tmp_path / "a.mat", label)
    np.testing.assert_array_equal(read_sbd(tmp_path / "a.mat"), label)


def test_damaged_sbd_is_named(tmp_path: Path, label: np.ndarray) -> None:
    write_sbd_mat(tmp_path / "a.mat", label)
    content = (tmp_path / "a.mat").read_bytes()
    for cut in (0, 50, 200, len(content) - 10):
        (tmp_path / "a.mat").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a.mat is damaged"):
            read_sbd(tmp_path / "a.mat")
    savemat(tmp_path / "b.mat", {"GTcls": {"Segmentation": np.zeros((2, 3, 4), np.uint8)}})
    with pytest.raises(UserError, match=r"b.mat is damaged: GTcls.Segmentation is uint8\[2, 3, 4\]"):
        read_sbd(tmp_path / "b.mat")
    with pytest.raises(UserError, match=r"c.mat is missing"):
        read_sbd(tmp_path / "c.mat")


def test_smaller_instance_on_top(rng: np.random.Generator) -> None:
    shapes = []
    for value in rng.permutation(np.arange(1, 7)).tolist():
        mask = rng.random((30, 40)) < value / 8  # the areas differ for certain, larger values are larger
        shapes.append((value, mask))
    values = np.stack([np.where(mask, value, 99) for value, mask in shapes])
    expected = np.where((values == 99).all(0), 0, values.min(0))
    np.testing.assert_array_equal(paint(30, 40, shapes), expected)


def test_segmentation_formats(rng: np.random.Generator) -> None:
    width, height = SIZE
    mask = random_label(rng, [1, 1, 1]) == 1
    runs = run_lengths(mask)
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    for counts in (runs, packed):
        lengths = RunLengths(size=(height, width), counts=counts)
        np.testing.assert_array_equal(decode_segmentation(lengths, height, width), mask)
    assert unpack_runs(packed) == runs
    square: list[list[float]] = [[10, 20, 30, 20, 30, 25, 10, 25]]
    expected = np.zeros((height, width), bool)
    expected[20:25, 10:30] = True
    np.testing.assert_array_equal(decode_segmentation(square, height, width), expected)
    assert not decode_segmentation([[1, 1, 5, 5], []], height, width).any()  # a line and a nothing


@pytest.mark.parametrize("counts", [[5], [0, 89, 100], [-1, 9001], "00", "\x7f", "_"])
def test_run_lengths_that_do_not_add_up(counts: object) -> None:
    with pytest.raises(ValueError):
        RunLengths(size=(90, 100), counts=counts)  # type: ignore[arg-type]

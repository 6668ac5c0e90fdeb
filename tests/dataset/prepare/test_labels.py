"""Class maps read from every format, compared with what was drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from dataset.prepare.annotations import RunLengths, decode_segmentation, paint, unpack_runs
from dataset.prepare.image import read_label
from dataset.prepare.official import read_sbd
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


@pytest.fixture
def label(rng: np.random.Generator) -> np.ndarray:
    return random_label(rng, rng.integers(1, 21, 4).tolist(), border=True)


def test_palettes_and_colours_of_voc(tmp_path: Path, label: np.ndarray) -> None:
    write_palette_png(tmp_path / "a.png", label)
    colours = np.array(VOC_PALETTE + [(0, 0, 0)] * (255 - len(VOC_PALETTE)) + [VOC_BORDER], dtype=np.uint8)
    Image.fromarray(colours[label]).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read_label(tmp_path / name), label)


def test_colours_of_ones_own_overrule_the_palette_index(tmp_path: Path, label: np.ndarray) -> None:
    write_palette_png(tmp_path / "a.png", label)
    own = {colour: 20 - value for value, colour in enumerate(VOC_PALETTE)} | {VOC_BORDER: 77}
    expected = np.where(label == 255, 77, 20 - label)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png", own), expected)


def test_what_is_no_class_map_is_named(tmp_path: Path, label: np.ndarray) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "colour.png")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "high.png")
    write_palette_png(tmp_path / "cut.png", label)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-40])
    for name, colours, message in (
        ("colour", {(0, 0, 0): 0}, r"the colour \(1, 2, 3\) stands for no class"),
        ("high", None, "the value 300 is no class"),
        ("cut", None, "not a readable mask"),
        ("absent", None, "no such mask"),
    ):
        with pytest.raises(UserError, match=rf"{name}.png: {message}"):
            read_label(tmp_path / f"{name}.png", colours)


def test_sbd(tmp_path: Path, label: np.ndarray) -> None:
    write_sbd_mat(tmp_path / "a.mat", label)
    np.testing.assert_array_equal(read_sbd(tmp_path / "a.mat"), label)
    content = (tmp_path / "a.mat").read_bytes()
    for cut in (0, 50, 200, len(content) - 10):
        (tmp_path / "a.mat").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a.mat is damaged"):
            read_sbd(tmp_path / "a.mat")
    savemat(tmp_path / "b.mat", {"GTcls": {"Segmentation": np.zeros((2, 3, 4), np.uint8)}})
    for name, message in (("b", r" is damaged: GTcls.Segmentation is uint8\[2, 3, 4\]"), ("c", " is missing")):
        with pytest.raises(UserError, match=rf"{name}.mat{message}"):
            read_sbd(tmp_path / f"{name}.mat")


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

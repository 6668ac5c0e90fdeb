"""The table of photographs: on drawn images, and the band in which outlines are compared."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.prediction.test_fitted import fresh
from tests.toy import write_toy
from tools.photos import ImagesByClass, PhotoClass, absent_row, band, bins_row, measure, parse, row
from util.errors import UserError


def test_the_band_is_what_is_near_the_outline() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:60] = True
    width = 2  # 0.02 of the diagonal of 100
    inner = np.zeros_like(mask)
    inner[10 + width : 40 - width, 20 + width : 60 - width] = True
    assert np.array_equal(band(mask), mask & ~inner)
    assert band(np.ones((60, 80), bool))[0].all()


@pytest.mark.parametrize("absent", [False, True])
def test_rows_of_drawn_images(tmp_path: Path, absent: bool) -> None:
    root = write_toy(tmp_path / "toy", train=9, val=1)
    files = [(root / f"JPEGImages/train{n:03d}.jpg", root / f"SegmentationClassAug/train{n:03d}.png") for n in range(9)]
    each = PhotoClass("toy", "thing1", 1, (255, 255), [[files[0]]], [files[8]], [files[3]])
    found = {"thing1": [measure(fresh(), each, each.draws[0], absent)]}
    measured = found["thing1"][0]
    (overlap, union), (near, near_union) = measured.present[0].counts
    assert 0 <= near <= overlap <= union and near_union <= union
    assert row(("toy", "1", "adapt"), found)[3].startswith(f"{overlap / union:.3f}")
    assert len(measured.absent) == absent
    if absent:
        there, elsewhere = (part[0].is_found for part in (measured.present, measured.absent))
        assert absent_row(("toy", "1", "adapt"), found)[3:] == [f"{elsewhere:.2f}", f"{not there:.2f}"]
        assert len(bins_row(("toy", "1", "adapt"), found)) == 3 + 10 + 1


def test_unlabelled_pixels_are_background_or_nothing(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    label = np.full((48, 48), 255, np.uint8)
    label[8:24, 8:24] = 3
    files = tmp_path / "image.png", tmp_path / "mask.png"
    for array, file in zip((image, label), files, strict=True):
        Image.fromarray(array).save(file)
    for ignored, mask in (((None, None), label == 3), ((None, 255), label == 3), ((255, 255), (label, 3))):
        measured, expected = fresh(), fresh()
        found = measure(measured, PhotoClass("toy", "thing", 3, ignored, [[files]], [files], []), [files], False)
        expected.set_support([image], [mask])
        assert torch.equal(*(each.states["object"]["means"] for each in (measured, expected)))
        truth, mine = label == 3, expected.predict(image).mask > 0
        union = (truth | mine)[label == 3 if ignored[1] else ...].sum()
        assert found.present[0].counts[0].tolist() == [(truth & mine).sum(), union]


def test_an_image_counts_where_the_class_has_its_share(tmp_path: Path) -> None:
    label = np.zeros((20, 20), np.uint8)
    label[:2] = 1  # a tenth
    Image.fromarray(label).save(tmp_path / "mask.png")
    pairs = [("image.png", "mask.png")]
    for share, expected in ((0.09, pairs), (0.11, [])):
        assert ImagesByClass(tmp_path, tmp_path / "list.txt", share, pairs).of(1) == expected


@pytest.mark.parametrize("words", ["", "--msrc x --draws 0", "--msrc x --queries 0", "--voc x --shots 1 -1"])
def test_nothing_to_measure_is_said_before_the_work(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["photos", *words.split()])
    with pytest.raises(UserError, match="should be at least 1" if words else "give one or both"):
        parse()

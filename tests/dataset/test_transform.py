"""Transforms: resize against OpenCV and plain formulas, augmentation, boxes, normalisation."""

import random

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dataset.transform import Augmentation, fill_boxes, pad, rotate, scale, squash_image, squash_mask
from util.image import normalise, resize_image, resize_mask

AnnotatedImage = tuple[NDArray[np.float32], NDArray[np.uint8]]

MEAN = torch.tensor([123.675, 116.28, 103.53])
STD = torch.tensor([58.395, 57.12, 57.375])


@pytest.fixture
def annotated(generator: np.random.Generator) -> AnnotatedImage:
    h, w = generator.integers(40, 90, 2)
    mask = np.zeros((h, w), np.uint8)
    mask[h // 4 : h // 2, w // 3 : w // 2] = 1
    mask[:3] = 255
    return generator.uniform(0, 255, (h, w, 3)).astype(np.float32), mask


@pytest.mark.parametrize("size", [(33, 33), (121, 65), (40, 200)])
def test_resize_has_half_pixel_centres(annotated: AnnotatedImage, size: tuple[int, int]) -> None:
    image, mask = annotated
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    plain = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=False)[0]
    np.testing.assert_allclose(resize_image(image, *size), plain.permute(1, 2, 0), atol=2e-2)
    rows, columns = (
        np.minimum(np.arange(new) * (1 / (new / old)), old - 1).astype(int)
        for new, old in zip(size, mask.shape, strict=True)
    )
    np.testing.assert_array_equal(resize_mask(mask, *size), mask[rows][:, columns])
    expected = (torch.from_numpy(image) - MEAN) / STD
    torch.testing.assert_close(normalise(image), expected.permute(2, 0, 1))


def test_scale_and_rotate_move_image_and_mask_together(generator: np.random.Generator) -> None:
    mask = np.zeros((80, 61), np.uint8)
    mask[10:50, 20:45] = 1
    image = np.repeat(mask[..., None] * np.float32(200), 3, axis=2)
    for changed, changed_mask in [
        scale(image, mask, generator.uniform(0.5, 2)),
        rotate(image, mask, generator.uniform(-30, 30)),
    ]:
        is_object = (changed_mask == 1).astype(np.uint8)
        edge = cv2.dilate(is_object, np.ones((5, 5))) != cv2.erode(is_object, np.ones((5, 5)))
        agree = (changed[..., 0] > 100) == is_object
        assert agree[~edge & (changed_mask != 255)].all() and (is_object & ~edge).any()


def test_rotation_turns_about_the_centre_and_fills(annotated: AnnotatedImage) -> None:
    image, mask = annotated
    turned, turned_mask = rotate(image, mask, 180)
    np.testing.assert_array_equal(turned_mask, mask[::-1, ::-1])
    np.testing.assert_allclose(turned, image[::-1, ::-1], atol=0.1)
    turned, turned_mask = rotate(image[:40, :40], np.zeros((40, 40), np.uint8), 45)
    assert turned_mask[0, 0] == turned_mask[-1, -1] == 255 and turned_mask[20, 20] == 0
    np.testing.assert_allclose(turned[0, 0], MEAN, rtol=1e-6)
    stripe = np.zeros((41, 41), np.uint8)
    stripe[20, 30:] = 1  # to the right of the centre, so after a quarter turn counter-clockwise above it
    assert rotate(np.zeros((41, 41, 3), np.float32), stripe, 90)[1][:11, 20].all()


def test_pad_centres(annotated: AnnotatedImage) -> None:
    image, mask = annotated
    h, w = mask.shape
    padded, padded_mask = pad(image, mask, h + 7, w - 5)
    assert padded_mask.shape == (h + 7, w)
    np.testing.assert_array_equal(padded[3 : 3 + h], image)
    np.testing.assert_array_equal(padded_mask[3 : 3 + h], mask)
    assert (padded_mask[:3] == 255).all() and (padded_mask[3 + h :] == 255).all()
    np.testing.assert_allclose(padded[:3].reshape(-1, 3), MEAN.expand(3 * w, 3), rtol=1e-6)


def test_augmentation_draws_what_it_says(annotated: AnnotatedImage) -> None:
    """Flips, blurs and rotations come half of the time, scales spread evenly over their range."""
    noise, nothing = annotated[0][:40, :40], np.zeros((40, 40), np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 40, dtype=np.float32)[None].repeat(40, 0)[..., None], 3, axis=2)
    rng, still = random.Random(), Augmentation(40, 40, (1, 1), (0, 0), 0)
    for name, is_changed in (
        ("flip", lambda: still(ramp, nothing, rng)[0][20, 6, 0] > 128),
        ("blur", lambda: still(noise, nothing, rng)[0].std() < 0.8 * noise.std()),
        ("turn", lambda: (Augmentation(40, 40, (1, 1), (9, 10), 0)(noise, nothing, rng)[1] == 255).any()),
    ):
        assert 150 < sum(is_changed() for _ in range(400)) < 250, name
    small, growing = np.ones((20, 20), np.uint8), Augmentation(81, 81, (1, 4), (0, 0), 0)
    factors = [(growing(noise[:20, :20], small, rng)[1] == 1).sum() ** 0.5 / 20 for _ in range(400)]
    assert min(factors) < 1.2 and max(factors) > 3.8 and 2.3 < np.mean(factors) < 2.7


@pytest.mark.parametrize("good", [None, 0, 7, 31])
def test_of_32_crops_the_first_good_or_else_the_last_is_taken(good: int | None) -> None:
    """`good`: the number of the crop that keeps the object."""

    class Corners(random.Random):
        """Corners in turn; all other draws as few changes as possible."""

        def __init__(self) -> None:
            super().__init__(0)
            self.drawn: list[int] = []

        def random(self) -> float:
            return 0.9

        def randint(self, low: int, high: int) -> int:
            self.drawn.append(60 if len(self.drawn) // 2 == good else len(self.drawn) // 2)
            return self.drawn[-1]

    mask, rng = np.zeros((100, 100), np.uint8), Corners()
    mask[65:95, 65:95] = 1
    image = np.repeat(np.indices((100, 100)).sum(0)[..., None], 3, 2).astype(np.float32)
    crop, _ = Augmentation(40, 40, (1, 1), (0, 0), 0.85)(image, mask, rng)
    assert len(rng.drawn) == 2 * (32 if good is None else good + 1)
    assert crop[0, 0, 0] == 2 * (31 if good is None else 60)


def test_boxes_of_components_with_ignored_pixels_on_top(generator: np.random.Generator) -> None:
    mask = np.zeros((60, 60), np.uint8)
    cv2.circle(mask, (15, 15), int(generator.integers(3, 9)), 1, -1)
    cv2.line(mask, (35, 30), (50, 50), 1, 1)
    mask[14:17, 40:45] = 255
    mask[15, 15] = 255
    expected = np.zeros_like(mask)
    for part in (slice(0, 30), slice(30, 60)):
        rows, columns = np.nonzero(mask[part, part] == 1)
        expected[part, part][rows.min() : rows.max() + 2, columns.min() : columns.max() + 2] = 1  # one pixel more
    expected[mask == 255] = 255
    np.testing.assert_array_equal(fill_boxes(mask), expected)
    np.testing.assert_array_equal(fill_boxes(np.zeros((5, 5), np.uint8)), 0)


def test_squashing_as_pillow_and_pytorch_do(generator: np.random.Generator) -> None:
    image = generator.integers(0, 256, (61, 83, 3)).astype(np.float32)
    expected = Image.fromarray(image.astype(np.uint8)).resize((41, 41), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squash_image(image, 41, 41), np.array(expected, np.float32))
    mask = generator.choice([0, 1, 255], (61, 83)).astype(np.uint8)
    rows, columns = np.arange(41) * 61 // 41, np.arange(41) * 83 // 41
    np.testing.assert_array_equal(squash_mask(mask, 41, 41), mask[rows][:, columns])


def test_squashed_training_images_keep_all_of_the_object(generator: np.random.Generator) -> None:
    """Half of a mask in the middle stays half of what is not filled, however it is scaled."""
    image, mask = np.zeros((80, 60, 3), np.float32), np.zeros((80, 60), np.uint8)
    mask[:, 15:45], image[:, 15:45] = 1, 200
    squash = Augmentation(33, 41, (0.5, 2), (-10, 10), 0.85, "squash")
    for seed in generator.integers(0, 10**6, 30).tolist():
        changed, changed_mask = squash(image, mask, random.Random(seed))
        assert changed.shape == (33, 41, 3) and changed_mask.shape == (33, 41)
        assert 0.35 < (changed_mask == 1).sum() / (changed_mask != 255).sum() < 0.6
        agree = (changed[..., 0] > 100) == (changed_mask == 1)
        assert agree[changed_mask != 255].mean() > 0.85

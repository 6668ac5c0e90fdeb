"""A small generated data set in the VOC layout.

A class is a shape filled with a texture in two colours; every shape and texture belongs to two classes, so neither
alone tells a class. Objects vary in size, place, turn, proportions, colour and light. They stand before clutter, among
objects of other classes, so what merely stands out is not the answer.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset.lists import class_lines
from util.files import atomic_write
from util.pixels import IGNORE
from util.visualize import save_index

Array = NDArray[np.float32]
Region = NDArray[np.bool_]
Fill = Callable[[Array, Array], NDArray[np.floating]]  # an object's own x, y -> RGB
Labels = NDArray[np.uint8]
Rng = np.random.Generator

TRAINING_PART = 0.7  # of the images; the rest is for validation
HIDDEN = 0.25  # of an object, at most, by later ones
SUBPIXEL = 4  # bits of the fraction of a pixel in OpenCV's drawing


def _polar(radius: NDArray[np.floating] | float, angle: Array) -> Array:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).astype(np.float32)


TURN = np.linspace(0, 2 * np.pi, 60, endpoint=False, dtype=np.float32)
HEART = np.stack([np.sin(TURN) ** 3, 0.38 * np.cos(2 * TURN) + 0.15 * np.cos(3 * TURN) - np.cos(TURN)], axis=-1)
CORNER = ((-1, -0.4), (-0.4, -0.4), (-0.4, -1), (0.4, -1), (0.4, -0.4), (1, -0.4))

# Outlines about the origin, of radius 1 or so; an outline within another is a hole.
SHAPES: dict[str, list[Array]] = {
    "disc": [_polar(0.95, TURN)],
    "square": [_polar(1.15, TURN[7::15])],
    "triangle": [_polar(1.25, TURN[5::20])],
    "star": [_polar(np.where(np.arange(10) % 2, 0.55, 1.2), TURN[::6])],
    "cross": [np.array([*CORNER, *((-x, -y) for x, y in CORNER)], np.float32)],
    "ring": [_polar(1.1, TURN), _polar(0.45, TURN)],
    "heart": [1.15 * HEART.astype(np.float32)],
    "bar": [np.array([(-1.3, -0.5), (1.3, -0.5), (1.3, 0.5), (-1.3, 0.5)], np.float32)],
    "arrow": [np.array([(-1.1, -0.45), (0, -0.45), (0, -1), (1.2, 0), (0, 1), (0, 0.45), (-1.1, 0.45)], np.float32)],
    "flower": [_polar(0.85 + 0.3 * np.cos(5 * TURN), TURN)],
}

# Share of the second colour at a point (x, y) of the object.
TEXTURES: dict[str, Callable[[Array, Array], Region]] = {
    "striped": lambda x, y: np.sin(9 * x) > 0,
    "dotted": lambda x, y: np.cos(9 * x) + np.cos(9 * y) > 0.7,
    "checked": lambda x, y: np.sin(7 * x) * np.sin(7 * y) > 0,
    "ringed": lambda x, y: np.sin(11 * np.hypot(x, y)) > 0,
    "zigzag": lambda x, y: np.sin(10 * y + 2.5 * np.arcsin(np.sin(9 * x))) > 0,
    "bricked": lambda x, y: (3 * y % 1 < 0.22) | ((1.6 * x + 0.5 * (np.floor(3 * y) % 2)) % 1 < 0.15),
    "latticed": lambda x, y: np.minimum(np.abs(np.sin(6 * (x + y))), np.abs(np.sin(6 * (x - y)))) < 0.35,
    "rayed": lambda x, y: np.sin(9 * np.arctan2(y, x)) > 0,
    "wavy": lambda x, y: np.sin(9 * x + 2 * np.sin(6 * y)) > 0,
    "halved": lambda x, y: x + 0.3 * y > 0,
}


@dataclass(frozen=True)
class Look:
    """What the objects of a class have in common."""

    name: str
    outlines: list[Array]
    texture: Callable[[Array, Array], Region]
    hues: tuple[float, float]


def looks() -> dict[int, Look]:
    """The 20 classes; within a fold of five no shape and no texture comes twice."""
    found = {}
    for number in range(20):
        shape = list(SHAPES)[number % 10]
        texture = list(TEXTURES)[(3 * (number % 10) + 5 * (number // 10)) % 10]
        hue = number * 0.382 % 1  # the golden section spreads any run of classes over the circle of colours
        hues = (hue, (hue + (0.12, 0.35, 0.5)[number % 3]) % 1)
        found[number + 1] = Look(f"{texture} {shape}", SHAPES[shape], TEXTURES[texture], hues)
    return found


def write_demo(root: str | Path, images_per_class: int = 40, size: int = 160, seed: int = 0) -> None:
    """Write 20 * images_per_class images of about size x size pixels, masks, classes.txt and ImageSets/{train,val}.txt.

    The images depend on the arguments alone. Objects cover about 2 to 25 % of an image, so area_threshold should be
    near size * size / 100.
    """
    root = Path(root)
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    classes = looks()
    lines = []
    for number in range(images_per_class * len(classes)):
        rng = np.random.default_rng([seed, number])
        image, labels = draw_image(classes, number % len(classes) + 1, size, rng)
        image_name, mask_name = f"JPEGImages/{number:04d}.jpg", f"SegmentationClassAug/{number:04d}.png"
        Image.fromarray(image).save(root / image_name, quality=95)
        save_index(root / mask_name, labels)
        lines.append(f"{image_name} {mask_name}\n")
    training = round(TRAINING_PART * images_per_class) * len(classes)
    atomic_write(root / "classes.txt", class_lines({class_id: look.name for class_id, look in classes.items()}))
    atomic_write(root / "ImageSets" / "train.txt", "".join(lines[:training]))
    atomic_write(root / "ImageSets" / "val.txt", "".join(lines[training:]))


def draw_image(classes: dict[int, Look], class_id: int, size: int, rng: Rng) -> tuple[NDArray[np.uint8], Labels]:
    """An image (h, w, 3) with one or two objects of a class and up to two of others, and its labels (h, w)."""
    h, w = (round(size * rng.uniform(0.9, 1.1)) for _ in range(2))
    canvas = _background(h, w, rng)
    labels = np.zeros((h, w), np.uint8)
    for _ in range(rng.integers(5, 10)):
        _draw_clutter(canvas, size * rng.uniform(0.06, 0.2), rng)
    others = [int(other) for other in rng.permutation(list(classes))[: rng.choice(3, p=(0.25, 0.45, 0.3))]]
    wanted = [class_id, *others, *[class_id] * int(rng.random() < 0.25)]
    objects: list[Region] = []
    for other in wanted:
        radius = size * rng.uniform(0.14, 0.27 if other == class_id else 0.22)
        if (visible := _place(canvas, classes[other], radius, objects, rng)) is not None:
            objects.append(visible)
            labels[visible] = other
    edge = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    labels[edge > 0] = IGNORE  # where a pixel shows both an object and what is behind it
    return _light(canvas, rng), labels


def _place(canvas: Array, look: Look, radius: float, objects: Sequence[Region], rng: Rng) -> Region | None:
    """Draw an object where it hides little of the others; its pixels (h, w), or None when there is no room."""
    h, w = canvas.shape[:2]
    for _ in range(12):
        centre = rng.uniform((0.9 * radius, 0.9 * radius), (w - 0.9 * radius, h - 0.9 * radius))
        frame = _frame(radius * rng.uniform(0.85, 1.15, 2), rng.uniform(0, 2 * np.pi))
        cover = _cover(h, w, [outline @ frame.T + centre for outline in look.outlines])
        visible = cover > 0.5
        if all(visible[other].mean() <= HIDDEN for other in objects):
            _paint(canvas, cover, centre, frame, _object_fill(look, rng))
            return visible
    return None


def _object_fill(look: Look, rng: Rng) -> Fill:
    bright, dark = (_colour(hue, light, rng) for hue, light in zip(look.hues, (0.95, 0.45), strict=True))
    shift, stretch, slope = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.9, 1.1), rng.uniform(-0.25, 0.25)

    def fill(x: Array, y: Array) -> NDArray[np.floating]:
        second = look.texture(stretch * (x + shift[0]), stretch * (y + shift[1]))
        return np.where(second[..., None], dark, bright) * (1 + slope * np.clip(x, -1, 1))[..., None]

    return fill


def _draw_clutter(canvas: Array, radius: float, rng: Rng) -> None:
    """A shapeless blob in a colour of its own that changes softly, or a line."""
    h, w = canvas.shape[:2]
    centre, colour = rng.uniform((0, 0), (w, h)), _colour(rng.random(), rng.uniform(0.3, 1), rng)
    slope, turn = rng.uniform(-0.4, 0.4), rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.3:
        radii, outline = np.array([rng.uniform(0.2, 0.5) * w, rng.uniform(0.5, 2)]), SHAPES["square"][0]
    else:
        radii, outline = radius * rng.uniform(0.7, 1.4, 2), _polar(rng.uniform(0.5, 1.3, 10), TURN[::6])
    frame = _frame(radii, turn)
    cover = _cover(h, w, [outline @ frame.T + centre])
    _paint(canvas, cover, centre, frame, lambda x, y: colour * (1 + slope * np.clip(x, -1, 1))[..., None])


def _background(h: int, w: int, rng: Rng) -> Array:
    """Two dull colours (h, w, 3) mixed by noise of several sizes."""
    mix = np.zeros((h, w), np.float32)
    for cells in (2, 5, 12, 40):
        noise = rng.random((cells, cells), np.float32) - 0.5
        mix += cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC) * cells**-0.4
    share = np.clip(0.5 + mix, 0, 1)[..., None]
    first, second = (0.6 * _colour(rng.random(), rng.uniform(0.3, 1), rng) + 45 for _ in range(2))
    return (first + (second - first) * share).astype(np.float32)


def _light(canvas: Array, rng: Rng) -> NDArray[np.uint8]:
    """Light that falls off to one side and has a colour, blur, and noise of the camera."""
    h, w = canvas.shape[:2]
    down, right = rng.uniform(-0.25, 0.25, 2)
    slope = np.linspace(-down, down, h)[:, None] + np.linspace(-right, right, w)
    lit = canvas * (rng.uniform(0.75, 1.15) + slope).astype(np.float32)[..., None]
    lit *= rng.uniform(0.9, 1.1, 3).astype(np.float32)
    noise = rng.uniform(2, 6) * rng.standard_normal(canvas.shape, np.float32)
    blurred = cv2.GaussianBlur(lit, (5, 5), rng.uniform(0.3, 0.9))
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def _colour(hue: float, light: float, rng: Rng) -> Array:
    """RGB near a hue and a lightness, 0 to 255."""
    value = float(np.clip(light * rng.uniform(0.85, 1.1), 0, 1))
    rgb = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.03)) % 1, rng.uniform(0.45, 0.95), value)
    return 255 * np.array(rgb, np.float32)


def _frame(radii: NDArray[np.float64], angle: float) -> Array:
    """The matrix (2, 2) from an object's own coordinates to pixels."""
    cos, sin = np.cos(angle), np.sin(angle)
    return (np.array([[cos, -sin], [sin, cos]]) * radii).astype(np.float32)


def _cover(h: int, w: int, outlines: Sequence[NDArray[np.floating]]) -> Array:
    """How much of each pixel the outlines enclose, (h, w) from 0 to 1."""
    cover = np.zeros((h, w), np.uint8)
    cv2.fillPoly(cover, [np.rint(o * 2**SUBPIXEL).astype(np.int32) for o in outlines], 255, cv2.LINE_AA, SUBPIXEL)
    return np.asarray(cover / 255, np.float32)


def _paint(canvas: Array, cover: Array, centre: NDArray[np.floating], frame: Array, fill: Fill) -> None:
    """Lay a fill over the canvas in place, as far as it covers each pixel."""
    left, top, width, height = cv2.boundingRect((cover > 0).astype(np.uint8))
    window = slice(top, top + height), slice(left, left + width)
    pixels = np.mgrid[left : left + width, top : top + height].transpose(2, 1, 0) - centre  # (height, width, 2)
    own = (pixels @ np.linalg.inv(frame).T).astype(np.float32)
    canvas[window] += (fill(own[..., 0], own[..., 1]) - canvas[window]) * cover[window][..., None]

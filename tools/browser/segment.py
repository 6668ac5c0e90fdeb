"""What one tab of the page holds and what is done with it; uploads are checked, and their names are never paths."""

import base64
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any, NamedTuple
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset.benchmarks.table import open_benchmark
from dataset.episode import draw_seeded, wanted_classes
from dataset.index import load_index
from prediction.evidence import Evidence, gather_evidence
from prediction.masks import object_mask
from prediction.predictor import SINGLE, Prediction, Predictor
from util.config import Config
from util.errors import UserError
from util.image import RGB, open_image, read_image
from util.mask import interpret_mask
from util.pixels import IGNORE
from util.visualize import class_color, data_url, draw_contour, fit, fit_mask, heat, mosaic, overlay

Mask = NDArray[np.uint8]
Support = dict[str, tuple[list[RGB], list[Mask]]]  # by class, its images and the object in each
Card = tuple[RGB, str]  # an image of the page and its caption

CANVAS_SIDE = 1024  # pixels of the longer side of the image that is painted on
VIEW_SIDE = 640  # of a result on the page
VIEWS = ("overlay", "contour", "probability", "first map")
EXAMPLE_QUERIES = 6
ORDERS: dict[str, Callable[[Prediction], float]] = {
    "as given": lambda prediction: 0,
    "highest score first": lambda prediction: -prediction.score,
    "found first": lambda prediction: not prediction.is_found,
    "least sure first: label these next": lambda prediction: prediction.certainty,
}


class Network(NamedTuple):
    """What segments."""

    cfg: Config
    weights: Path | None  # None for a training-free method
    predictor: Predictor  # shared by all tabs, without supports
    source: str  # what it is, in a line


class Limits(NamedTuple):
    """How much a tab may hand over."""

    megapixels: float = 50
    supports: int = 20
    queries: int = 100


@dataclass
class Shot:
    """A support image, its class, and the object in it: (h, w), 1 object, 0 other, 255 not to be judged."""

    number: int  # by which the page knows it
    path: Path
    image: RGB
    mask: Mask
    class_name: str

    def canvas_image(self) -> RGB:
        """The image as it is painted on, its longer side at most CANVAS_SIDE pixels."""
        return fit(self.image, CANVAS_SIDE, CANVAS_SIDE) if max(self.image.shape) > CANVAS_SIDE else self.image


class Answer(NamedTuple):
    """What was found in a query image."""

    path: Path  # of the server's copy, under the name that it was uploaded with
    view: RGB  # the image as large as it is shown
    support: Support  # what was looked for
    evidence: Evidence
    seconds: float
    predictor: Predictor  # by which

    def prediction(self, threshold: float, picture: RGB) -> Prediction:
        """Masks and probabilities for the image at the size of `picture`, without what does not count as found."""
        evidence, size = self.evidence, picture.shape[:2]
        return self.predictor.prediction(evidence.names, evidence.scores, size, picture).at(threshold).without_unsure()


@dataclass
class Session:
    """One tab: its supports, and the answers to its last search."""

    limits: Limits = field(default_factory=Limits)
    shots: list[Shot] = field(default_factory=list)
    shot: Shot | None = None  # the one on the canvas
    answers: list[Answer] = field(default_factory=list)
    counter: int = 0  # shots that there ever were
    network: str = ""  # the name of the one in use
    asked: Any = None  # `state` at the last search

    def state(self) -> tuple[Any, ...]:
        """What answers depend on: the network and the supports."""
        return self.network, *((shot.number, shot.class_name, crc32(shot.mask.tobytes())) for shot in self.shots)

    @property
    def is_stale(self) -> bool:
        """Whether there are answers, and supports or network have changed since."""
        return bool(self.answers) and self.asked != self.state()

    def values(self) -> dict[str, int]:
        """The value of every class in masks, which says its colour, in the order in which they first come up."""
        return {name: value for value, name in enumerate(dict.fromkeys(shot.class_name for shot in self.shots), 1)}

    def add_shot(self, path: str | Path, image: RGB, mask: Mask | None = None, class_name: str = "") -> None:
        """Take a support image, without an object unless a mask is given, and put it on the canvas."""
        if len(self.shots) >= self.limits.supports:
            raise UserError(f"{Path(path).name}: at most {self.limits.supports} support images are taken; remove one")
        class_name = class_name or (self.shot.class_name if self.shot else SINGLE)
        self.counter += 1
        self.shot = Shot(self.counter, Path(path), image, np.zeros(image.shape[:2], np.uint8), class_name)
        self.shot.mask = self.shot.mask if mask is None else mask
        self.shots.append(self.shot)

    def add_file(self, path: str) -> None:
        """Take an uploaded support image; UserError as `read_upload` and `add_shot`."""
        self.add_shot(path, read_upload(path, self.limits))

    def remove_shot(self) -> None:
        """Remove the one on the canvas, where the last one takes its place."""
        self.shots = [shot for shot in self.shots if shot is not self.shot]
        self.shot = self.shots[-1] if self.shots else None

    def set_class(self, name: str | None) -> None:
        """Give the shot on the canvas another class."""
        if self.shot and name and name.strip():
            self.shot.class_name = name.strip()

    def read_mask(self, path: str) -> None:
        """Take the mask of the shot on the canvas from an uploaded file; UserError where it misfits."""
        if self.shot is None:
            raise UserError("there is no support image yet that this mask could belong to")
        read_upload(path, self.limits)  # is it an image at all, and of a size to be read
        index = interpret_mask(path).label
        count = len(set(np.unique(index)) - {0, IGNORE})
        if count > 1:
            raise UserError(f"{Path(path).name}: marks {count} classes; give a mask of the one object, white on black")
        self.shot.mask = object_mask(index, self.shot.image.shape[:2], self.shot.path.name)

    def read_painting(self, value: Any) -> None:
        """Take over what the canvas sent, {shot, ink}, if it was painted on; UserError for a damaged painting."""
        if not isinstance(value, dict) or "image" in value:
            return
        for shot in (shot for shot in self.shots if shot.number == value.get("shot")):  # none if it was removed
            try:
                with Image.open(io.BytesIO(base64.b64decode(str(value.get("ink")).rpartition(",")[2]))) as ink:
                    opaque = (np.asarray(ink.convert("RGBA"))[..., 3] > 127).astype(np.uint8)
                assert opaque.shape == shot.canvas_image().shape[:2]
            except Exception:  # whatever a browser may send
                raise UserError(f"{shot.path.name}: the painting did not arrive whole; paint it again") from None
            size = shot.image.shape[1::-1]
            shot.mask = np.asarray(cv2.resize(opaque, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)

    def canvas(self) -> dict[str, Any] | None:
        """What the canvas shows: the current image, its object as ink, and the colour of its class."""
        if self.shot is None:
            return None
        image, value = self.shot.canvas_image(), self.values()[self.shot.class_name]
        ink = np.zeros((*image.shape[:2], 4), np.uint8)
        ink[fit_mask(self.shot.mask, image) == 1] = (*class_color(value), 255)
        shown = {"image": data_url(image), "ink": data_url(ink, "png"), "color": f"rgb{class_color(value)}"}
        return {"shot": self.shot.number, **shown}

    def strip(self) -> list[dict[str, str]]:
        """A small image of every support with its object, its line, and the colour of its class."""
        items = []
        for shot in self.shots:
            value, remark = self.values()[shot.class_name], "" if 1 in shot.mask else ", nothing painted yet"
            shown = {"url": data_url(thumbnail(shot.image, shot.mask, value)), "color": f"rgb{class_color(value)}"}
            mark = "chosen" if shot is self.shot else ""
            items.append({**shown, "text": f"{shot.class_name}: {shot.path.name}{remark}", "mark": mark})
        return items

    def support(self) -> Support:
        """The supports by class; UserError where there is none, or one without an object."""
        if not self.shots:
            raise UserError("there is no support image yet; drop one on the left and paint the object in it")
        classes: Support = {name: ([], []) for name in self.values()}
        for shot in self.shots:
            if 1 not in shot.mask:
                raise UserError(f"{shot.path.name}: nothing is painted in it; paint the object, or remove the image")
            classes[shot.class_name][0].append(shot.image)
            classes[shot.class_name][1].append(shot.mask)
        return classes


def read_upload(path: str | Path, limits: Limits) -> RGB:
    """An uploaded image (h, w, 3); UserError, by its name alone, for what is none and for too many pixels."""
    name, most = Path(path).name, f"and at most {limits.megapixels:g} are taken; make it smaller"
    try:
        with open_image(path) as header:
            width, height = header.size
        if width * height > limits.megapixels * 1e6:
            raise UserError(f"{width}x{height} are {width * height / 1e6:.0f} megapixels, {most}")
        return read_image(path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        reason = f"has far too many megapixels, {most}" if "decompression bomb" in reason else reason
        reason = "is not an image; take a JPEG, PNG or WebP file" if "it is no image" in reason else reason
        raise UserError(f"{name}: {reason}") from None


def thumbnail(image: RGB, mask: Mask, value: int, side: int = 200) -> RGB:
    """A support image with its object in the colour of its class."""
    small = fit(image, side, side)
    mask = fit_mask(mask, small)
    return overlay(small, np.where(mask == 1, value, mask))


def answer_queries(session: Session, predictor: Predictor, paths: Sequence[str]) -> Iterator[Answer | UserError]:
    """Look for the session's classes in every image; what cannot be read comes back as its error, in its turn.

    `predictor` is this session's own. Raises UserError where supports are incomplete, and for no image or too many.
    """
    support, most = session.support(), session.limits.queries
    if not paths:
        raise UserError("there is no image to search; drop some on the right")
    if len(paths) > most:
        raise UserError(f"{len(paths)} images to search, and at most {most} are taken; remove some")
    predictor.set_support(support)
    session.asked = session.state()
    for path in paths:
        start = perf_counter()
        try:
            image = read_upload(path, session.limits)
        except UserError as error:
            yield error
            continue
        evidence, view = gather_evidence(predictor, image), fit(image, VIEW_SIDE, VIEW_SIDE)
        yield Answer(Path(path), view, support, evidence, perf_counter() - start, predictor)


def draw_answers(answers: Sequence[Answer], view: str, threshold: float, order: str) -> tuple[list[Card], int]:
    """One of VIEWS of all answers in one of ORDERS, and in how many something is found.

    Nothing is computed by the network.
    """
    found = [(answer, answer.prediction(threshold, answer.view)) for answer in answers]
    found.sort(key=lambda pair: ORDERS[order](pair[1]))
    return [draw_answer(*pair, view) for pair in found], sum(prediction.is_found for _, prediction in found)


def draw_answer(answer: Answer, prediction: Prediction, view: str) -> Card:
    """One of VIEWS, and a line: the image's name, the classes found with their scores, the seconds it took."""
    if view == "first map":
        drawn = heat(next(iter(answer.evidence.maps.values())).amax(0).numpy(), answer.view)
    elif view == "probability":
        drawn = heat(prediction.probability, answer.view)
        draw_contour(drawn, prediction.mask > 0, (255, 255, 255))
    else:
        drawn = overlay(answer.view, prediction.mask, alpha=0.5 if view == "overlay" else 0)
    classes = ", ".join(f"{item.name} {item.score:.2f}" for item in prediction.found()) or "not found"
    return drawn, f"{answer.path.name}: {classes} ({answer.seconds:.1f}\u00a0s)"


def explain_answer(answer: Answer, class_name: str) -> list[Card]:
    """Supports with masks, query, result, and the maps by which the method explains it, each with its caption.

    Nothing is computed by the network.
    """
    evidence, view = answer.evidence, answer.view
    place = evidence.names.index(class_name)
    supports = zip(*answer.support[class_name], strict=True)
    shots = [thumbnail(image, mask, place + 1, VIEW_SIDE) for image, mask in supports]
    result = answer.prediction(0.5, view).mask == place + 1
    shown = [
        (mosaic(shots, view.shape[0]), f"{len(shots)} supports" if len(shots) > 1 else "support"),
        (view, "query"),
        (overlay(view, np.where(result, place + 1, 0)), "result"),
    ]
    for caption, maps in evidence.maps.items():
        values = maps[place].numpy()
        is_unit = values.min() >= 0 and values.max() <= 1
        low, high = (0, 1) if is_unit else (values.min(), values.max())
        shown.append((heat((values - low) / (high - low), view), f"{caption} ({low:.3g} to {high:.3g})"))
    return shown


def show_example(cfg: Config, session: Session, folder: Path) -> list[str]:
    """Put an episode's supports in place of the session's own; returns copies of images to search.

    They come from the data set that the network was trained for, of a class that no training saw. Raises UserError
    where the data set is not there.
    """
    names, (index, files) = open_benchmark(cfg).names(), load_index(cfg, "val")
    episode = draw_seeded(index, cfg.shot, cfg.seeds[0], session.counter)
    wanted, chosen = episode.class_id, (episode.query, *episode.support)
    session.shots = []
    for image in episode.support:
        session.add_shot(files[image][0], files.image(image), files.read(image, wanted), names[wanted])
    others = [image for image in index.images if image not in chosen and wanted in wanted_classes(index, image)]
    place = mkdtemp(dir=folder)
    return [shutil.copy(files[image][0], place) for image in (episode.query, *others[: EXAMPLE_QUERIES - 1])]

"""What one tab of the page holds, and what is done with it. Uploads are checked, and their names are no paths."""

import base64
import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image

from prediction.choice import Source
from prediction.clicks import EditedMask, Mask
from prediction.evidence import gather_evidence
from prediction.expectation import expect, leave_out, lines
from prediction.joint import needed
from prediction.masks import object_mask
from prediction.predictor import SINGLE, Predictor
from prediction.support import SupportClass
from tools.browser.answer import VIEW_SIDE, Answer, Card, Display, Save, draw_support
from util.errors import UserError
from util.image import RGB, read_image
from util.mask import interpret_mask
from util.pixels import IGNORE
from util.visualize import class_color, data_url, fit, fit_mask

CANVAS_SIDE = 1024  # pixels of the longer side of the image that is painted on
CARD_SIDE = 200  # of a support among others


class Network(NamedTuple):
    """What segments."""

    source: Source
    predictor: Predictor  # shared by all tabs, without supports
    about: str  # what it is, in a line


class Limits(NamedTuple):
    """How much a tab may hand over."""

    megapixels: float = 50
    supports: int = 20
    queries: int = 100


class Shot(EditedMask):
    """A support image, its class, and the object in it: (h, w), 1 object, 0 other, 255 not to be judged."""

    def __init__(self, number: int, path: Path, image: RGB, mask: Mask, class_name: str) -> None:
        super().__init__(image, mask)
        self.number, self.path, self.class_name = number, path, class_name
        self.small = fit(image, CARD_SIDE, CARD_SIDE)

    def canvas_image(self) -> RGB:
        """The image as it is painted on, its longer side at most CANVAS_SIDE pixels."""
        return fit(self.image, CANVAS_SIDE, CANVAS_SIDE) if max(self.image.shape) > CANVAS_SIDE else self.image


@dataclass
class Session:
    """One tab: its supports, and the answers to its last search."""

    limits: Limits = field(default_factory=Limits)
    network: str = ""  # the name of the one in use
    display: Display = field(default_factory=Display)
    shots: list[Shot] = field(default_factory=list)
    shot: Shot | None = None  # the one on the canvas
    answers: list[Answer] = field(default_factory=list)
    shown: list[Answer] = field(default_factory=list)  # the same in the order of the page
    opened: Answer | None = None  # the one at full size
    counter: int = 0  # shots that there ever were
    asked: Any = None  # `state` at the last search
    expected: str = ""  # of the IoU, by the supports of that search
    status: str = ""  # how far that search is, or what came of it

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
        mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
        self.shot = Shot(self.counter, Path(path), image, mask, class_name)
        self.shots.append(self.shot)

    def add_file(self, path: str) -> None:
        """Take an uploaded support image; UserError as `read_upload` and `add_shot`."""
        self.add_shot(path, read_upload(path, self.limits))

    def remove(self, gone: Sequence[Shot | None]) -> None:
        """Remove supports; the last one that is left comes on the canvas."""
        self.shots = [shot for shot in self.shots if shot not in gone]
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
        try:
            index = interpret_mask(path).label
            if (count := len(set(np.unique(index)) - {0, IGNORE})) > 1:
                raise UserError(f"marks {count} classes")
        except UserError as error:  # whose remedy is an option of predict.py
            reason = str(error).removeprefix(f"{path}: ").partition(";")[0]
            raise UserError(f"{Path(path).name}: {reason}; give a mask of the one object, white on black") from None
        self.shot.change(object_mask(index, self.shot.image.shape[:2], self.shot.path.name))

    def read_painting(self, value: Any) -> None:
        """Take over what the canvas sent, {shot, ink}, if it was painted on; UserError for a damaged painting."""
        if not isinstance(value, dict) or "ink" not in value or "image" in value:  # nothing was painted
            return
        for shot in (shot for shot in self.shots if shot.number == value.get("shot")):  # none if it was removed
            try:
                with Image.open(io.BytesIO(base64.b64decode(str(value["ink"]).rpartition(",")[2]))) as ink:
                    opaque = (np.asarray(ink.convert("RGBA"))[..., 3] > 127).astype(np.uint8)
                assert opaque.shape == shot.canvas_image().shape[:2]
            except Exception:  # whatever a browser may send
                raise UserError(f"{shot.path.name}: the painting did not arrive whole; paint it again") from None
            if (opaque != fit_mask(shot.mask == 1, opaque)).any():  # else it came before
                shot.change(fit_mask(opaque, shot.image))

    def canvas(self) -> dict[str, Any] | None:
        """What the canvas shows: the current image, its object as ink, and the colour of its class."""
        if self.shot is None:
            return None
        image, color = self.shot.canvas_image(), class_color(self.values()[self.shot.class_name])
        ink = np.zeros((*image.shape[:2], 4), np.uint8)
        ink[fit_mask(self.shot.mask, image) == 1] = (*color, 255)
        urls = {"image": data_url(image), "ink": data_url(ink, "png")}
        return {"shot": self.shot.number, **urls, "color": f"rgb{color}"}

    def cards(self) -> list[Card]:
        """A small image of every support with its object in the colour of its class, and its line."""
        cards = []
        for shot in self.shots:
            remark = "" if 1 in shot.mask else ", nothing painted yet"
            drawn = draw_support(shot.small, shot.mask, self.values()[shot.class_name], CARD_SIDE)
            cards.append((drawn, f"{shot.class_name}: {shot.path.name}{remark}"))
        return cards

    def support(self) -> list[SupportClass]:
        """The supports by class; UserError where there is none, or one without an object."""
        if not self.shots:
            raise UserError("there is no support image yet; drop one on the left and paint the object in it")
        classes = {name: SupportClass(name, value, [], []) for name, value in self.values().items()}
        for shot in self.shots:
            if 1 not in shot.mask:
                raise UserError(f"{shot.path.name}: nothing is painted in it; paint the object, or remove the image")
            classes[shot.class_name].images.append(shot.path)
            classes[shot.class_name].masks.append(shot.mask)
        return list(classes.values())

    def search(self, predictor: Predictor, paths: Sequence[str], save: Save) -> Iterator[UserError | None]:
        """Look for the classes in every image, which then has its answer; an error for what cannot be read.

        Ends where `stop` was called meanwhile; otherwise the answers are drawn in order, whatever ended it. Raises
        UserError where supports are incomplete, and for no image or too many.
        """
        answers, asked, support, limits = self.answers, self.state(), self.support(), self.limits
        predictor = copy.copy(predictor)
        if not paths:
            raise UserError("there is no image to search; drop some on the right")
        if len(paths) > limits.queries:
            raise UserError(f"{len(paths)} images to search, and at most {limits.queries} are taken; remove some")
        predictor.set_support({item.name: (item.images, item.masks) for item in support})
        if self.answers is not answers:
            return
        if self.asked != asked:
            self.asked, self.expected = asked, ""
        begin = perf_counter()
        try:
            for number, path in enumerate(paths, 1):
                error = self._answer(answers, path, support, predictor, save)
                if self.answers is not answers:
                    return
                self.shown = answers  # in this order until all are there
                left = (perf_counter() - begin) / number * (len(paths) - number)
                self.status = f"{number} of {len(paths)} images, {left:.0f} s left"
                yield error
        finally:
            if self.answers is answers:
                self.draw(save)

    def _answer(
        self, answers: list[Answer], path: str, support: list[SupportClass], predictor: Predictor, save: Save
    ) -> UserError | None:
        start = perf_counter()
        try:
            image = read_upload(path, self.limits)
            evidence, view = gather_evidence(predictor, image), fit(image, VIEW_SIDE, VIEW_SIDE)
        except UserError as error:
            return error
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        answers.append(Answer(Path(path), size, view, support, evidence, perf_counter() - start))
        answers[-1].draw(self.display, save)
        return None

    def stop(self, save: Save) -> None:
        """End a search under way, whose list of answers is then no longer the session's; draw what it has found."""
        self.answers = self.answers.copy()
        self.draw(save)

    def draw(self, save: Save) -> None:
        """Draw all answers anew, sort and count them, as `display` says; the network computes nothing."""
        for answer in self.answers:
            answer.draw(self.display, save)
        self.shown = sorted(self.answers, key=lambda answer: answer.rank)
        found = sum(answer.is_found for answer in self.answers)
        self.status = f"{len(self.answers)} images, found in {found}" if self.answers else ""

    def expect(self, predictor: Predictor) -> list[str]:
        """Note the IoU to be expected, every support segmented by the others; lines on masks that disagree with them.

        Nothing where no class has two supports, where it is known, or where they have changed since the search.
        """
        if self.expected or self.asked != self.state():
            return []
        support = self.support()
        if not (trials := leave_out(copy.copy(needed(predictor, support)), support)):
            return []
        self.expected, *disagreeing = lines({"": expect(trials)}, "")
        return disagreeing


def read_upload(path: str | Path, limits: Limits) -> RGB:
    """An uploaded image (h, w, 3); UserError, by its name alone, for what is none and for too many pixels."""
    try:
        return read_image(path, max_megapixels=limits.megapixels)
    except UserError as error:
        raise UserError(f"{Path(path).name}: {str(error).removeprefix(f'{path}: ')}") from None

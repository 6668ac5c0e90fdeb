"""What was found in one image, and how the page draws it; nothing here is computed by the network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prediction.clicks import Mask
from prediction.evidence import VIEWS, Evidence
from prediction.predictor import Prediction
from prediction.support import SupportClass
from util.image import RGB, read_image
from util.visualize import fit, fit_mask, mosaic, overlay

Card = tuple[RGB, str]  # an image of the page and its caption
Save = Callable[[RGB], str]  # keeps a drawing as a file, so that none stays in memory

VIEW_SIDE = 640  # pixels of the longer side of a result among others
ORDERS: dict[str, Callable[[Prediction], float]] = {
    "as given": lambda prediction: 0,
    "highest score first": lambda prediction: -prediction.score,
    "found first": lambda prediction: not prediction.is_found,
    "least sure first: label these next": lambda prediction: prediction.certainty,
}


class Display(NamedTuple):
    """How results are shown, and the threshold of their masks."""

    view: str = VIEWS[0]
    threshold: float = 0.5
    order: str = next(iter(ORDERS))


@dataclass
class Answer:
    """What was found in a query image."""

    path: Path  # of the server's copy, under the name that it was uploaded with
    size: str  # of the image, in words
    view: RGB  # the image as large as it is shown among others
    support: list[SupportClass]  # what was looked for
    evidence: Evidence
    seconds: float
    drawn: Display | None = None  # how it was last
    card: tuple[str, str] = "", ""  # the file and the caption that the page shows
    line: str = ""  # what is said where it is opened
    rank: float = 0  # among others in the chosen order
    is_found: bool = False

    def draw(self, display: Display, save: Save) -> None:
        """Draw it as it is shown among others: its classes with their scores, its seconds, and its rank there.

        Nothing is done where it is drawn so already, and its file is still there.
        """
        if display == self.drawn and Path(self.card[0]).is_file():
            return
        prediction = self.evidence.prediction(display.threshold, self.view)
        classes = ", ".join(f"{item.name} {item.score:.2f}" for item in prediction.found()) or "not found"
        text = f"{self.path.name}: {classes} ({self.seconds:.1f}\u00a0s)"
        self.card = save(self.evidence.draw(display.view, prediction, self.view)), text
        self.line = f"{text}, {self.size}"
        self.rank, self.is_found = ORDERS[display.order](prediction), prediction.is_found
        self.drawn = display

    def draw_whole(self, display: Display) -> tuple[RGB, RGB]:
        """The image at its own size, and what is chosen to be shown of the result."""
        image = read_image(self.path)
        return image, self.evidence.draw(display.view, self.evidence.prediction(display.threshold, image), image)

    def explain(self, place: int) -> list[Card]:
        """Supports of one class with masks, query, result, and the maps by which the method explains it."""
        view, (_, value, images, masks) = self.view, self.support[place]
        pairs = zip(map(read_image, images), masks, strict=True)
        shots = [draw_support(image, mask, value, VIEW_SIDE) for image, mask in pairs]
        result = self.evidence.prediction(0.5, view).mask == value
        about = f"{len(shots)} supports" if len(shots) > 1 else "support"
        shown = [(mosaic(shots, view.shape[0]), about), (view, "query"), (overlay(view, value * result), "result")]
        return shown + self.evidence.draw_maps(place, view)


def draw_support(image: RGB, mask: Mask, value: int, side: int) -> RGB:
    """A support image, reduced, with its object in the colour of its class."""
    small = fit(image, side, side)
    mask = fit_mask(mask, small)
    return overlay(small, np.where(mask == 1, value, mask))

"""An object's mask from a few clicks in its image, by the frozen features of a network's backbone; and its history."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve
from torch.nn import functional as F

from prediction.predictor import Predictor
from util.image import RGB, normalise
from util.visualize import encode_image, fit, fit_mask

Mask = NDArray[np.uint8]
Map = NDArray[np.float32]

SIDE = 448  # pixels of the image's longer side as the backbone sees it
MULTIPLE = 32  # of its sides
EDGE_SIDE = 320  # of the image in which outlines are drawn to edges
DISC = 6  # pixels around a click there that are surely as it says
BETA = 20.0  # by which neighbours that differ part
PRIOR_WEIGHT = 0.02  # of a position's own look, where a link between equal neighbours weighs 1
SURE = 1e3  # weight of a click
SHARPNESS = 12.0  # of the probability by cosine
MASK_SHARE = 0.5  # of the painted mask in the prior
STEPS = 20  # that can be undone


class Click(NamedTuple):
    """A place, x and y from 0 to 1, that belongs to the object or does not."""

    x: float
    y: float
    add: bool

    def cell(self, height: int, width: int) -> tuple[int, int]:
        """Row and column of that place in a grid."""
        row, column = int(self.y * height), int(self.x * width)
        return min(max(row, 0), height - 1), min(max(column, 0), width - 1)


class EditedMask:
    """An image's mask (h, w) that is painted and clicked, and its former states, to which `step` leads back."""

    def __init__(self, image: RGB, mask: Mask) -> None:
        self.image = image
        self.history: list[tuple[bytes, Sequence[Click]]] = []  # masks as PNG, and the clicks since they were painted
        self.place = -1  # of the present mask there
        self.change(mask)

    def change(self, mask: Mask, clicks: Sequence[Click] = ()) -> None:
        """Take another mask, and the clicks that it comes from."""
        self.mask = mask
        self.history = [*self.history[: self.place + 1], (encode_image(mask), clicks)][-STEPS - 1 :]
        self.place = len(self.history) - 1

    def step(self, by: int) -> None:
        """Go to a former mask, or on to a later one, as far as they are remembered."""
        self.place = min(max(self.place + by, 0), len(self.history) - 1)
        self.mask = self._stored(self.place)

    def click(self, click: Click, predictor: Predictor) -> None:
        """Let the mask grow or shrink by one more click on what was painted."""
        painted = [place for place in range(self.place + 1) if not self.history[place][1]]
        start = self._stored(painted[-1]) if painted else np.zeros_like(self.mask)
        clicks = [*self.history[self.place][1], click]
        self.change(mask_from_clicks(predictor, self.image, clicks, start), clicks)

    def _stored(self, place: int) -> Mask:
        with Image.open(io.BytesIO(self.history[place][0])) as image:
            return np.array(image)


def mask_from_clicks(predictor: Predictor, image: RGB, clicks: Sequence[Click], mask: Mask) -> Mask:
    """The mask (h, w) of 0 and 1 that clicks in an image make of what was painted before, which may be nothing.

    What resembles the added places more than the removed ones is spread to where features change (random walks,
    Grady, PAMI 2006), and its outline drawn to edges (GrabCut, Rother et al., SIGGRAPH 2004). Parts that neither an
    added place nor the painted mask touches are left out.
    """
    features = unit_features(predictor, image)
    prior = look(features, clicks, mask)
    return at_edges(image, walk(features, prior, clicks), clicks, mask)


@torch.inference_mode()
def unit_features(predictor: Predictor, image: RGB) -> Map:
    """The backbone's maps of an image at the finest one's size, joined to unit vectors: (h, w, channels)."""
    scale = SIDE / max(image.shape)
    height, width = (max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in image.shape[:2])
    shown = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    backbone = predictor.model.backbone
    maps = backbone(normalise(shown)[None].to(predictor.device), backbone.levels)
    units = [F.normalize(x.float(), dim=1) for x in maps.values()]
    size = max(x.shape[2:] for x in units)
    joined = torch.cat([F.interpolate(x, size, mode="bilinear") for x in units], 1)
    return F.normalize(joined, dim=1)[0].permute(1, 2, 0).cpu().numpy()


def look(features: Map, clicks: Sequence[Click], mask: Mask) -> Map:
    """How probably each position is of the object, by its cosine to clicked ones and by the painted mask: (h, w)."""
    size = features.shape[:2]
    painted = cv2.resize((mask == 1).astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    added = [features[click.cell(*size)] for click in clicks if click.add]
    taken = [features[click.cell(*size)] for click in clicks if not click.add]
    if not added and not painted.any():
        return np.zeros(size, np.float32)
    added = added or [np.average(features, axis=(0, 1), weights=painted)]
    like = np.max([features @ vector for vector in added], axis=0)
    scaled = (like - like.min()) / (np.ptp(like) + 1e-6)
    limit, _ = cv2.threshold(np.rint(scaled * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    margin = scaled - limit / 255
    if taken:
        margin = np.minimum(margin, like - np.max([features @ vector for vector in taken], axis=0))
    share = MASK_SHARE if painted.any() else 0
    return np.asarray((1 - share) / (1 + np.exp(-SHARPNESS * margin)) + share * painted, np.float32)


def walk(features: Map, prior: Map, clicks: Sequence[Click]) -> Map:
    """The prior (h, w) spread over links between neighbours, strong where features are alike; clicks are certain."""
    height, width = prior.shape
    place = np.arange(prior.size).reshape(height, width)
    ends = [(place[:, :-1], place[:, 1:]), (place[:-1], place[1:])]
    first, second = (np.concatenate([pair[side].ravel() for pair in ends]) for side in (0, 1))
    flat = features.reshape(prior.size, -1)
    weight = np.exp(-BETA * (1 - (flat[first] * flat[second]).sum(1)))
    pull, target = np.full(prior.size, PRIOR_WEIGHT), prior.ravel().astype(np.float64)
    for click in clicks:
        where = place[click.cell(height, width)]
        pull[where], target[where] = SURE, click.add
    links = coo_matrix((weight, (first, second)), (prior.size, prior.size))
    links = (links + links.T).tocsr()
    laplacian = diags(np.asarray(links.sum(1)).ravel() + pull) - links
    return np.asarray(spsolve(laplacian.tocsc(), pull * target), np.float32).reshape(height, width)


def at_edges(image: RGB, probability: Map, clicks: Sequence[Click], mask: Mask) -> Mask:
    """What is probably the object, at the image's size with its edges."""
    small = fit(image, EDGE_SIDE, EDGE_SIDE)
    height, width = small.shape[:2]
    likely = cv2.resize(probability, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5
    label = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    for click in clicks:
        row, column = click.cell(height, width)
        cv2.circle(label, (column, row), DISC, cv2.GC_FGD if click.add else cv2.GC_BGD, -1)
    if likely.any() and not likely.all():
        colours, others = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(np.ascontiguousarray(small), label, (0, 0, 1, 1), others, colours, 1, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(label, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts = cv2.connectedComponents(inside)
    kept = {int(parts[click.cell(height, width)]) for click in clicks if click.add}
    kept |= set(np.unique(parts[fit_mask(mask == 1, small) == 1]).tolist())
    found = np.isin(parts, list(kept - {0})).astype(np.uint8)
    return np.asarray(cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.uint8)

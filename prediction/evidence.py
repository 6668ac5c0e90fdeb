"""What leads to a prediction: the maps that a method makes on the way from a query to its scores."""

from functools import cache
from tempfile import NamedTemporaryFile, gettempdir
from typing import NamedTuple

import torch
from torch import Tensor

from model.methods.method import Scores
from model.tensors import tree_map
from prediction.predictor import Prediction, Predictor
from util.errors import UserError
from util.image import RGB, ImageSource, read_image
from util.visualize import draw_contour, heat, overlay

VIEWS = ("overlay", "contour", "probability", "first map", "original")


class Evidence(NamedTuple):
    """Scores and maps of one query for every class of the support, at the method's own size, on the CPU in float32.

    Maps are of the image alone, scores with the padding around it; these lie on the disk, so that any number of them
    leaves the memory free.
    """

    names: tuple[str, ...]  # of the classes
    scores: list[Scores]  # B = 1 each
    maps: dict[str, Tensor]  # by caption, as the method explains itself for all of them: (classes, h, w)
    predictor: Predictor  # by which

    def prediction(self, threshold: float, image: RGB) -> Prediction:
        """Masks and probabilities at the size of an image, the query or a smaller one of it, at a threshold."""
        return self.predictor.prediction(self.names, self.scores, image.shape[:2], image).at(threshold)

    def draw(self, view: str, prediction: Prediction, image: RGB) -> RGB:
        """One of VIEWS of what the scores came to, over the image or instead of it."""
        if view == "original":
            return image
        if view == "first map":
            return heat(next(iter(self.maps.values())).amax(0).numpy(), image)
        if view != "probability":
            return overlay(image, prediction.mask, alpha=0.5 if view == "overlay" else 0)
        drawn = heat(prediction.probability, image)
        draw_contour(drawn, prediction.mask > 0, (255, 255, 255))
        return drawn

    def draw_maps(self, place: int, image: RGB) -> list[tuple[RGB, str]]:
        """Every map of a class over the image, with its caption; colours go from 0 to 1 or over its own range."""
        drawn = []
        for caption, maps in self.maps.items():
            values = maps[place].numpy()
            is_unit = values.min() >= 0 and values.max() <= 1
            low, high = (0, 1) if is_unit else (values.min(), values.max())
            drawn.append((heat((values - low) / (high - low), image), f"{caption} ({low:.3g} to {high:.3g})"))
        return drawn


@torch.inference_mode()
def gather_evidence(predictor: Predictor, image: ImageSource) -> Evidence:
    """The maps of one image; UserError as `Predictor.predict`, and where a disk is full."""
    pixels = read_image(image)
    query = predictor.embed_queries([pixels])
    with predictor.autocast():
        found = [predictor.model.explain(query, state) for state in predictor.states.values()]
    kept = cache(lambda x: on_disk(x.float().cpu()))  # scores may hold one tensor twice
    scores = [tree_map(kept, each.scores) for each in found]
    captions = [caption for caption in found[0].maps if all(caption in each.maps for each in found)]
    maps = {caption: torch.cat([each.maps[caption] for each in found]).float().cpu() for caption in captions}
    if predictor.model.images.fit == "padded":
        maps = {caption: without_padding(x, pixels.shape[:2]) for caption, x in maps.items()}
    return Evidence(tuple(predictor.states), scores, maps, predictor)


def on_disk(x: Tensor) -> Tensor:
    """The same in a file that has no name any more; UserError where a disk is full."""
    try:
        with NamedTemporaryFile() as file:
            file.write(x.contiguous().numpy().data)
            file.flush()
            return torch.from_file(file.name, size=x.numel(), dtype=x.dtype).view_as(x)
    except (OSError, RuntimeError) as error:  # the latter where there are too many
        raise UserError(
            f"{gettempdir()}: {getattr(error, 'strerror', None) or error}; set TMPDIR to a folder with more room"
        ) from None


def without_padding(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """The part of square maps (N, f, f) that an image (h, w) took when it was padded, up to half a position."""
    height, width = (max(1, round(maps.shape[-1] * side / max(size))) for side in size)
    return maps[:, :height, :width]

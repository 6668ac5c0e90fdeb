"""What leads to a prediction: the maps that a method makes on the way from a query to its scores."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.methods.method import Scores
from model.tensors import tree_map
from prediction.predictor import Predictor
from util.image import ImageSource, read_image


class Evidence(NamedTuple):
    """Scores and maps of one query for every class of the support, at the method's own size, on the CPU in float32.

    Maps are of the image alone, scores with the padding around it.
    """

    names: tuple[str, ...]  # of the classes
    scores: list[Scores]  # B = 1 each
    maps: dict[str, Tensor]  # by caption, as the method explains itself: (classes, h, w)


@torch.inference_mode()
def gather_evidence(predictor: Predictor, image: ImageSource) -> Evidence:
    """The maps of one image; UserError as `Predictor.predict`."""
    pixels = read_image(image)
    query = predictor.embed_queries([pixels])
    with predictor.autocast():
        found = [predictor.model.explain(query, state) for state in predictor.states.values()]
    scores = [tree_map(lambda x: x.float().cpu(), each.scores) for each in found]
    maps = {caption: torch.cat([each.maps[caption] for each in found]).float().cpu() for caption in found[0].maps}
    if predictor.model.images.fit == "padded":
        maps = {caption: without_padding(x, pixels.shape[:2]) for caption, x in maps.items()}
    return Evidence(tuple(predictor.states), scores, maps)


def without_padding(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """The part of square maps (N, f, f) that an image (h, w) took when it was padded, up to half a position."""
    height, width = (max(1, round(maps.shape[-1] * side / max(size))) for side in size)
    return maps[:, :height, :width]

"""What leads to a prediction: the maps that a method makes on the way from a query to its scores."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.methods.method import Scores
from model.tensors import tree_map
from prediction.predictor import Predictor
from util.image import ImageSource


class Evidence(NamedTuple):
    """Scores and maps of one query for every class of the support, at the method's own size, on the CPU in float32."""

    names: tuple[str, ...]  # of the classes
    scores: list[Scores]  # B = 1 each
    maps: dict[str, Tensor]  # by caption, as the method explains itself: (classes, h, w)


@torch.inference_mode()
def gather_evidence(predictor: Predictor, image: ImageSource) -> Evidence:
    """The maps of one image; UserError as `Predictor.predict`."""
    query = predictor.embed_queries([image])
    with predictor.autocast():
        found = [predictor.model.explain(query, state) for state in predictor.states.values()]
    scores = [tree_map(lambda x: x.float().cpu(), each.scores) for each in found]
    maps = {caption: torch.cat([each.maps[caption] for each in found]).float().cpu() for caption in found[0].maps}
    return Evidence(tuple(predictor.states), scores, maps)

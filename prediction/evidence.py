"""What leads to a prediction: the maps that the network makes on the way from a query to its scores."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.parts.ensemble import base_map
from model.parts.mamba import HybridBlock, SupportMemory
from model.resize import resize
from prediction.predictor import Predictor
from util.image import ImageSource


class Evidence(NamedTuple):
    """Maps of one query for every class of the support, at the trunk's size f, on the CPU in float32."""

    names: tuple[str, ...]  # of the classes
    margins: Tensor  # (classes, f, f), final score of the object over that of the background
    prior: Tensor  # (classes, 2, f, f) in [0, 1], foreground and discriminative prior
    meta: Tensor  # (classes, f, f), the object's probability before the ensemble
    base: Tensor | None  # (f, f), probability of any base class; None without a base learner
    final: Tensor  # (classes, f, f), the object's probability after the ensemble, each class by itself
    interception: dict[int, Tensor]  # by hybrid block, from 0: (classes, f, f), norm of what QIM adds at a position


@torch.inference_mode()
def gather_evidence(predictor: Predictor, image: ImageSource) -> Evidence:
    """The maps of one image; UserError as `Predictor.predict`."""
    model = predictor.model
    norms: dict[int, list[Tensor]] = {}
    query = predictor.embed_queries([image])

    def listen(block: HybridBlock, inputs: tuple[Tensor, SupportMemory], output: Tensor) -> None:
        norms.setdefault(numbers[block], []).append(interception(block, *inputs))

    numbers = {
        block: number
        for number, block in enumerate(model.trunk.blocks)
        if isinstance(block, HybridBlock) and block.qim != "none"
    }
    hooks = [block.register_forward_hook(listen) for block in numbers]
    try:
        with predictor.autocast():
            scores = [model.score(query, state) for state in predictor.states.values()]
            priors = [model.prior(query.levels, state.levels) for state in predictor.states.values()]
            base = None
            if model.base_learner is not None:
                base = base_map(model.base_learner.classify(resize(query.levels[-1], model.feature_size)))[0, 0]
    finally:
        for hook in hooks:
            hook.remove()
    meta, final = (torch.cat(maps).float().cpu() for maps in zip(*scores, strict=True))  # (classes, 2, f, f) each
    return Evidence(
        tuple(predictor.states),
        final[:, 1] - final[:, 0],
        torch.cat(priors).float().cpu(),
        meta.softmax(1)[:, 1],
        None if base is None else base.float().cpu(),
        final.softmax(1)[:, 1],
        {number: torch.stack(maps).float().cpu() for number, maps in norms.items()},
    )


def interception(block: HybridBlock, q: Tensor, memory: SupportMemory) -> Tensor:
    """Norm over the channels of what QIM adds to the scan of a query `(1, f, f, C)`: `(f, f)` (paper, section 4.4)."""
    u = block.query.scan_input(block.ln_1(q))
    added = block.intercepted(u, block.scan.project(u.flatten(1, 2)), memory.state)
    return added[0].norm(dim=-1)

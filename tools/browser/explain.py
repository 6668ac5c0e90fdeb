"""The page Explain: the maps behind one answer, side by side."""

import numpy as np

from prediction.predictor import Predictor
from tools.browser.segment import heat
from tools.browser.state import VIEW_SIDE, Answer, thumbnail
from util.image import RGB
from util.visualize import mosaic, overlay

Shown = tuple[RGB, str]  # an image and its caption


def explain_answer(predictor: Predictor, answer: Answer, class_name: str) -> list[Shown]:
    """Supports with masks, query, priors, probabilities before, beside and after the ensemble, result, QIM by block.

    Nothing is computed by the network.
    """
    evidence, side = answer.evidence, answer.view.shape[0]
    place = evidence.names.index(class_name)
    shots = [
        thumbnail(picture, mask, place + 1, VIEW_SIDE)
        for picture, mask in zip(*answer.support[class_name], strict=True)
    ]
    result = answer.prediction(predictor, 0.5, answer.view.shape[:2]).mask == place + 1
    foreground, discriminative = evidence.prior[place].numpy()
    shown = [
        (mosaic(shots, side), f"{len(shots)} supports" if len(shots) > 1 else "support"),
        (answer.view, "query"),
        (heat(foreground, answer.view), "prior: like the object (0 to 1)"),
        (heat(discriminative, answer.view), "prior: more like the object than like its surroundings (0 to 1)"),
        (heat(evidence.meta[place].numpy(), answer.view), "probability before the ensemble (meta)"),
    ]
    if evidence.base is not None:
        shown.append((heat(evidence.base.numpy(), answer.view), "probability of any base class"))
        shown.append((heat(evidence.final[place].numpy(), answer.view), "probability after the ensemble"))
    shown.append((overlay(answer.view, np.where(result, place + 1, 0)), "result"))
    for number, maps in evidence.interception.items():
        norm = maps[place].numpy()
        caption = f"QIM in block {number + 1}: norm of what it adds ({norm.min():.2f} to {norm.max():.2f})"
        shown.append((heat((norm - norm.min()) / (np.ptp(norm) + 1e-9), answer.view), caption))
    return shown

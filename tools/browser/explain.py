"""The page Explain: the maps behind one answer, side by side."""

import numpy as np

from prediction.predictor import Predictor
from tools.browser.segment import heat
from tools.browser.state import VIEW_SIDE, Answer, thumbnail
from util.image import RGB
from util.visualize import mosaic, overlay

Shown = tuple[RGB, str]  # an image and its caption


def explain_answer(predictor: Predictor, answer: Answer, class_name: str) -> list[Shown]:
    """Supports with masks, query, result, and the maps by which the method explains it.

    Nothing is computed by the network.
    """
    evidence, side = answer.evidence, answer.view.shape[0]
    place = evidence.names.index(class_name)
    shots = [
        thumbnail(picture, mask, place + 1, VIEW_SIDE)
        for picture, mask in zip(*answer.support[class_name], strict=True)
    ]
    result = answer.prediction(predictor, 0.5, answer.view.shape[:2]).mask == place + 1
    shown = [
        (mosaic(shots, side), f"{len(shots)} supports" if len(shots) > 1 else "support"),
        (answer.view, "query"),
        (overlay(answer.view, np.where(result, place + 1, 0)), "result"),
    ]
    for caption, maps in evidence.maps.items():
        values = maps[place].numpy()
        if values.min() >= 0 and values.max() <= 1:
            shown.append((heat(values, answer.view), f"{caption} (0 to 1)"))
        else:
            spread = (values - values.min()) / (np.ptp(values) + 1e-9)
            shown.append((heat(spread, answer.view), f"{caption} ({values.min():.2f} to {values.max():.2f})"))
    return shown

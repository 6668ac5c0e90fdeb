"""An object's mask from a few clicks in its image: where frozen features are like those at the clicks."""

from typing import NamedTuple

class Click(NamedTuple):
    x: float
    y: float
    add: bool
def mask_from_clicks(predictor, image, clicks, mask): return mask

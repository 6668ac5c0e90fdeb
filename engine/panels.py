"""Images of some episodes, drawn while they are evaluated."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.evaluation import EpisodeSet, Outcome
from util.files import own_name
from util.image import RGB
from util.visualize import episode_panel, save_image


def panel_drawer(
    episode_set: EpisodeSet, names: Mapping[int, str], count: int, show: Callable[[str, RGB], None]
) -> Callable[[Outcome], None]:
    """Draws `count` of the episodes, spread over the list: support | query | truth | prediction.

    `show` gets the number and class of each, and the image.
    """
    episodes, files, _ = episode_set
    chosen = {number * len(episodes) // count for number in range(count)}

    def draw(outcome: Outcome) -> None:
        if outcome.number not in chosen:
            return
        name = names[episodes[outcome.number].class_id]
        prediction = outcome.prediction.cpu().numpy(), outcome.iou
        show(f"{outcome.number:05d}_{name}", episode_panel(*outcome.images(files), {"prediction": prediction}, name))

    return draw


def panel_saver(folder: Path) -> Callable[[str, RGB], None]:
    """Writes what `panel_drawer` draws to a folder."""
    return lambda title, image: save_image(folder / f"{own_name(title.replace('/', '_'))}.png", image)


def clear_panels(folder: Path) -> None:
    """Remove the panels of an earlier test, and nothing else."""
    for path in folder.glob("*.png"):
        if re.match(r"\d{5}_", path.name):
            path.unlink()

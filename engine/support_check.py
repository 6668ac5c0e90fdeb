"""Does a network use its support? The same queries with supports of another class, and with an emptied support mask.

Who segments whatever stands out answers all three alike; what a network loses shows how much it used the support.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dataset.episode import Episode
from dataset.index import ImageIndex
from engine.comparison import EpisodePixels, difference
from engine.evaluation import EpisodeSet, Names, Segment, run_episodes
from engine.metric import aligned
from engine.results import Metrics, SupportDrop
from model.methods.method import Method, Scores
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError

CHANGES = {"other_class": "supports of another class", "empty_mask": "emptied support mask"}


def check_support(
    model: Method,
    cfg: Config,
    episodes: EpisodeSet,
    index: ImageIndex,
    process_group: ProcessGroup,
    segment: Segment,
    seed: int,
) -> dict[str, Metrics]:
    """Metrics of the same queries with wrong supports, by the keys of CHANGES; UserError where only one class is novel.

    The truth stays: an answer that is right although the support was not has not come from the support.
    """
    others = episodes._replace(episodes=[with_other_class(e, index, seed, i) for i, e in enumerate(episodes.episodes)])

    def empty(query: Tensor, support: Tensor, mask: Tensor, names: Names) -> Scores:
        return segment(query, support, torch.zeros_like(mask), names)

    return {
        "other_class": run_episodes(model, cfg, others, process_group, segment=segment),
        "empty_mask": run_episodes(model, cfg, episodes, process_group, segment=empty),
    }


def with_other_class(episode: Episode, index: ImageIndex, seed: int, number: int) -> Episode:
    """The episode with supports of another class, as many, drawn from (seed, number) alone."""
    rng, shot = random.Random(f"{seed}/{number}"), len(episode.support)
    images = {c: [i for i in index.by_class[c] if i != episode.query] for c in sorted(index.by_class)}
    classes = [c for c, known in images.items() if c != episode.class_id and len(known) >= shot]
    if not classes:
        raise UserError("--support-check: needs supports of another novel class, and this fold has none")
    other = rng.choice(classes)
    return replace(episode, support=rng.sample(images[other], shot), support_class=other)


def miou_drop(own: Sequence[Metrics], changed: Sequence[Metrics]) -> SupportDrop:
    """What mIoU loses by a change of the supports, with 95 % intervals, of all and of hard episodes.

    One evaluation per seed in each.
    """
    pairs = [(as_episode_pixels(before), as_episode_pixels(after)) for before, after in zip(own, changed, strict=True)]
    hard = [(before.hard_only(), after.hard_only()) for before, after in pairs]
    return SupportDrop(miou_drop=difference([pairs]), hard_miou_drop=difference([hard]), results=list(changed))


def as_episode_pixels(metrics: Metrics) -> EpisodePixels:
    """One evaluation as a comparison takes it."""
    pixels = np.array(metrics.episode_pixels)[None, :, 1]  # (1, E, 2)
    columns = metrics.episode_class, metrics.episode_hard, metrics.episode_query
    classes, hard, images = map(np.array, columns)
    return EpisodePixels(classes, hard, pixels, images)


def format_miou_drop(check: Mapping[str, SupportDrop]) -> str:
    """How mIoU changes, in points, a line per change of the supports; a loss is negative, as `tools.compare` has it."""
    rows = [["change of mIoU by", "all episodes", "hard episodes"]]
    for key, text in CHANGES.items():
        drops = check[key].miou_drop, check[key].hard_miou_drop
        rows.append([f"  {text}", *(drop.negative().text() if drop else "-" for drop in drops)])
    return aligned(rows)

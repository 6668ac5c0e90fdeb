"""Evaluation, the same code for test.py and for validation while training: episodes in, figures out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from dataset.dataset import collate, test_dataset
from dataset.episode import Episode, draw_episodes, read_episodes
from dataset.index import load_index
from util.config import Config
from util.errors import UserError
from util.metric import Result, count_pixels, ratio, summarize

Segment = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, support, support_mask -> scores (B, 2, H, W)


class EpisodeSet(NamedTuple):
    """What is evaluated on: episodes, image and mask file of every name, and the novel classes."""

    episodes: Sequence[Episode]
    files: Mapping[str, tuple[Path, Path]]
    classes: Sequence[int]


class Outcome(NamedTuple):
    """What the network made of one episode, for those who draw it."""

    number: int  # in the episode list
    support_mask: Tensor  # (K, H, W) as the network saw it
    names: Sequence[str]  # query, then supports in the network's order
    prediction: Tensor  # (h, w) in {0, 1}, at the size of the query's own mask
    truth: Tensor  # (h, w) in {0, 1, 255}
    iou: float | None


def evaluate(model: nn.Module, cfg: Config, *, seed: int, count: int, progress: bool = True) -> Result:
    """Figures of `count` episodes of the fold's novel classes, drawn with `seed`, at the original size of the masks.

    Leaves the model in the mode it was in, and every random state as it was. With torch.distributed initialised the
    episodes are split over the ranks; every rank returns the same figures, whatever their number. Raises UserError
    for a class that cannot form an episode, an unreadable image, or episodes that do not fit the fold.
    """
    return run_episodes(model, cfg, make_episodes(cfg, seed, count), progress=progress)


def make_episodes(cfg: Config, seed: int, count: int) -> EpisodeSet:
    """The whole episode list, drawn or read from `episodes_file`, before any image is read."""
    index, files = load_index(cfg, "val")
    classes = sorted(index.by_class)
    if cfg.episodes_file is None:
        return EpisodeSet(draw_episodes(index, cfg.shot, count, seed, cfg.protocol, cfg.workers), files, classes)
    episodes = read_episodes(Path(cfg.episodes_file))
    for line, episode in enumerate(episodes, 1):
        where = f"{cfg.episodes_file}: line {line}"
        if episode.class_id not in classes:
            raise UserError(f"{where}: class {episode.class_id} is not a novel class of split {cfg.split}: {classes}")
        if len(episode.support) != cfg.shot:
            raise UserError(f"{where}: {len(episode.support)} supports where shot is {cfg.shot}")
        for name in (episode.query, *episode.support):
            if name not in files:
                raise UserError(f"{where}: {name} is not in val_list ({cfg.val_list})")
    return EpisodeSet(episodes, files, classes)


def run_episodes(
    model: nn.Module,
    cfg: Config,
    episode_set: EpisodeSet,
    *,
    segment: Segment | None = None,
    observe: Callable[[Outcome], None] | None = None,
    progress: bool = True,
) -> Result:
    """As `evaluate`, on episodes at hand; `segment` replaces the model's forward, `observe` sees the rank's own episodes."""
    episodes, _, classes = episode_set
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    loader = episode_loader(cfg, episode_set, range(rank, len(episodes), world))
    device = next(model.parameters()).device
    counts = torch.zeros(len(episodes), 2, 2, dtype=torch.int64, device=device)  # as count_pixels
    start, busy = perf_counter(), 0.0
    with evaluating(model), tqdm(total=len(episodes), disable=not progress or rank > 0, unit="episode") as bar:
        for batch in loader:
            before = perf_counter()
            numbers, truths = batch["number"].tolist(), [truth.to(device) for truth in batch["query_mask"]]
            predictions = predict(segment or model, batch, truths)
            for number, prediction, truth in zip(numbers, predictions, truths, strict=True):
                counts[number] = count_pixels(prediction, truth)
            rows = counts[numbers].tolist()  # waits for the device
            busy += perf_counter() - before
            for position, number in enumerate(numbers if observe else []):
                support_mask, names = batch["support_mask"][position], batch["names"][position]
                iou = ratio(*rows[position][1])
                observe(Outcome(number, support_mask, names, predictions[position], truths[position], iou))
            bar.update(min(len(numbers) * world, bar.total - bar.n))
    seconds = torch.tensor([busy, (perf_counter() - start) / world], dtype=torch.float64, device=device)
    if distributed.is_initialized():
        distributed.all_reduce(counts)  # sums integers: a row is zero on every rank but its own
        distributed.all_reduce(seconds)
    return summarize(counts.cpu(), [e.class_id for e in episodes], classes, seconds[1].item(), seconds[0].item())


def episode_loader(cfg: Config, episode_set: EpisodeSet, numbers: Sequence[int]) -> DataLoader[dict[str, Any]]:
    """Batches of the episodes of these numbers, in order."""
    return DataLoader(
        Subset(test_dataset(cfg, *episode_set), numbers),
        batch_size=cfg.batch_size_val,
        num_workers=cfg.loader_worker_count,
        collate_fn=collate,
        generator=torch.Generator(),  # its own: training draws the same numbers with and without validation
    )


def predict(segment: Segment, batch: Mapping[str, Any], truths: Sequence[Tensor]) -> list[Tensor]:
    """Masks (h, w) in {0, 1} of a batch of queries, each at the size of its own truth."""
    device = truths[0].device
    scores = segment(*(batch[key].to(device, non_blocking=True) for key in ("query", "support", "support_mask")))
    return [
        interpolate(score[None].float(), truth.shape, mode="bilinear", align_corners=True)[0].argmax(0)
        for score, truth in zip(scores, truths, strict=True)
    ]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients, afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)

"""Evaluation, the same code for test.py and for validation while training: episodes in, metrics out."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from dataset.benchmarks.table import open_benchmark, test_config
from dataset.dataset import EvaluationEpisodes, collate
from dataset.episode import Episode, draw_episodes, read_episodes
from dataset.index import ImageIndex, ImageMaskStore, episode_count, load_index
from dataset.prepare.known import AREA_THRESHOLD, FOLD_SIZES
from dataset.transform import fit_image
from engine.loader import Batch, load_steps, shard_batches
from engine.metric import count_pixels, ratio, summarize
from engine.optim import autocast
from engine.paths import run_name
from engine.results import Metrics, TestProtocol
from model.inference import FeatureCache
from model.methods.method import Method, Scores
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError
from util.image import RGB, ImageRule, resize_image

Names = Sequence[Sequence[str]]  # of the images of every episode, query first
# query (B, 3, H, W), support (B, K, 3, H, W), support_mask (B, K, H, W), names -> scores at the method's own size
Segment = Callable[[Tensor, Tensor, Tensor, Names], Scores]


class EpisodeSet(NamedTuple):
    """What is evaluated on: episodes, image and mask file of every name, and the novel classes."""

    episodes: Sequence[Episode]
    files: ImageMaskStore
    classes: Sequence[int]


class Outcome(NamedTuple):
    """What the network made of one episode, for those who draw it."""

    number: int  # in the episode list
    names: Sequence[str]  # query, then supports in the network's order
    support_mask: Tensor  # (K, H, W) as the network saw it
    truth: Tensor  # (h, w) in {0, 1, 255}, at the size that is judged
    prediction: Tensor  # (h, w) in {0, 1}
    iou: float | None
    rule: ImageRule = ImageRule()  # how images got to the network

    def images(self, files: ImageMaskStore) -> tuple[list[tuple[RGB, NDArray[Any]]], RGB, NDArray[Any]]:
        """Supports with their masks, query and truth, as `util.visualize.episode_panel` takes them."""
        query, *supports = map(files.image, self.names)
        truth = self.truth.cpu().numpy()
        masks = self.support_mask.numpy()
        if self.rule.fit == "padded":
            supports = [fit_image(x.astype(np.float32), masks.shape[-1], self.rule).astype(np.uint8) for x in supports]
            height, width = (max(query.shape[:2]) - side for side in query.shape[:2])
            query = np.pad(query, ((0, height), (0, width), (0, 0)))
        if query.shape[:2] != truth.shape:  # judged at the input's size
            query = resize_image(query.astype(np.float32), *truth.shape).astype(np.uint8)
        return list(zip(supports, masks, strict=True)), query, truth


def find_weights(cfg: Config) -> Path:
    """The checkpoint to test; UserError says where it was looked for."""
    path, snapshots = expected_weights(cfg), cfg.experiment_dir / "snapshot"
    if path.is_file():
        return path
    if cfg.weight is None:
        remedy = "train first, fetch released ones by `python -m tools.prepare weights --download`"
        raise UserError(f"{path}: no such weights; {remedy}, or name others by `--opts weight FILE`")
    raise UserError(f"weight: {cfg.weight!r} is neither a file in {snapshots} nor a path; put the checkpoint there")


def trained_weights(cfg: Config) -> list[Path]:
    """The checkpoints train_epoch_{epoch}_{mIoU}.pth (train5_...) of the run or a release, the newest epoch last."""
    pattern = re.compile(run_name(cfg.trained_shot or cfg.shot) + r"_epoch_(\d+(?:\.\d+)?)_[\d.]+\.pth")
    found = [(pattern.fullmatch(path.name), path) for path in (cfg.experiment_dir / "snapshot").glob("*.pth")]
    return [path for _, path in sorted((float(match[1]), path) for match, path in found if match)]


def expected_weights(cfg: Config) -> Path:
    """Where the checkpoint to test is or should be.

    `weight` among the run's snapshots or as a path; without it the best, or the newest of `trained_weights`, which is
    how released networks are called.
    """
    if cfg.weight is None:
        best = cfg.best_weights(cfg.trained_shot or cfg.shot)
        return best if best.is_file() else next(reversed(trained_weights(cfg)), best)
    inside, outside = cfg.experiment_dir / "snapshot" / cfg.weight, Path(cfg.weight)
    return outside if outside.is_file() and not inside.is_file() else inside


def describe_test(cfg: Config, index: ImageIndex | None = None) -> TestProtocol:
    """What metrics of a test depend on, for people and reports: where, how drawn, at which size, how trained.

    With the index of its images, a note says so where they are only a part of a set whose size is known.
    """
    data = test_config(cfg)
    benchmark = open_benchmark(data)
    notes, sizes = benchmark.notes(), FOLD_SIZES.get(data.data_set, {}).get("val", ())
    comparable = data.test_classes == "novel" and data.area_threshold <= AREA_THRESHOLD and data.use_split_coco
    whole = sizes[data.split] if data.split < len(sizes) and comparable else None
    if index and whole and len(index.images) < whole:
        notes = [*notes, f"only a part of the set: {len(index.images)} of {whole} images of fold {data.split}"]
    return TestProtocol(
        set=data.data_set,
        fold=data.split,
        protocol=cfg.protocol,
        variant=benchmark.variant,
        size=cfg.val_size,
        metric_size=cfg.metric_size,
        trained_on=f"{cfg.data_set} split {cfg.split}",
        train_list=cfg.list_kind,
        notes=notes,
    )


def make_episodes(
    cfg: Config, seed: int, count: int | None, images: tuple[ImageIndex, ImageMaskStore] | None = None
) -> EpisodeSet:
    """The whole episode list of `test_set`, before any image is read: drawn, or all that `episodes_file` holds.

    Without a count there are as many as the benchmark is known by.

    `images` is what `load_index` returned, where it is at hand: a scan looks at every mask of the list.
    Raises UserError for a class that cannot form an episode and for a line of the file that does not belong to this
    data set, split and shot.
    """
    cfg = test_config(cfg)
    index, files = images or load_index(cfg, "test")
    count = count or episode_count(cfg, index)
    classes = sorted(index.by_class)
    if cfg.episodes_file is None:
        episodes = draw_episodes(index, cfg.shot, count, seed, cfg.protocol, cfg.draw_workers)
        return EpisodeSet(mark_hard(episodes, index), files, classes)
    episodes = read_episodes(cfg.episodes_file)
    for line, episode in enumerate(episodes, 1):
        problem = None
        if len(episode.support) != cfg.shot:
            problem = f"{len(episode.support)} supports, but shot is {cfg.shot}"
        elif unknown := {episode.query, *episode.support} - files.keys():
            problem = f"{min(unknown)} is not among the validation images of split {cfg.split}"
        elif episode.class_id not in classes:
            problem = f"class {episode.class_id} is not novel in split {cfg.split}, whose classes are {classes}"
        if problem:
            raise UserError(f"{cfg.episodes_file}:{line}: {problem}; give the episodes_file of this data set and split")
    return EpisodeSet(mark_hard(episodes, index), files, classes)


def mark_hard(episodes: Sequence[Episode], index: ImageIndex) -> list[Episode]:
    """The episodes, those marked `hard` whose query shows another class too: only the support tells which is meant."""
    contents = index.contents or index.classes
    return [replace(e, hard=bool({*contents.get(e.query, ())} - {e.class_id})) for e in episodes]


def run_episodes(
    model: Method,
    cfg: Config,
    episode_set: EpisodeSet,
    process_group: ProcessGroup,
    *,
    segment: Segment | None = None,
    observe: Callable[[Outcome], None] | None = None,
    progress: bool = True,
) -> Metrics:
    """Metrics of the episodes at the size of their truths.

    `segment` replaces the forward pass, which by default keeps the features of images within `feature_cache_mb`.
    Episodes are split over the processes of the world: `observe` sees this one's, the metrics are the same in all and
    for any number of them. Leaves the model in the mode it was in, and every random state as it was. Raises UserError
    for a file that is missing, unreadable or does not fit.
    """
    episodes, _, classes = episode_set
    device = process_group.device
    batches = shard_batches(len(episodes), cfg.batch_size_val, process_group)
    dataset = EvaluationEpisodes(cfg, *episode_set, model.images)
    loader = load_steps(dataset, batches, 1, cfg.loader_worker_count, collate)
    hidden = process_group.no_bar if progress else True
    counts = torch.zeros(len(episodes), 2, 2, dtype=torch.int64, device=device)  # as count_pixels
    segment = segment or FeatureCache(model, cfg.feature_cache_mb).scores
    start, busy = perf_counter(), 0.0
    with evaluating(model), autocast(cfg.amp, device):
        for (batch,) in tqdm(loader, "episodes", total=len(batches), disable=hidden, leave=False):
            before = perf_counter()
            truths = [truth.to(device) for truth in batch["query_mask"]]
            predictions = predict(segment, batch, truths)
            numbers = batch["number"].tolist()
            for number, prediction, truth in zip(numbers, predictions, truths, strict=True):
                counts[number] = count_pixels(prediction, truth)
            rows = counts[numbers].tolist()  # waits for the device
            busy += perf_counter() - before
            if observe:
                ious = [ratio(*row[1]) for row in rows]
                for fields in zip(
                    numbers, batch["names"], batch["support_mask"], truths, predictions, ious, strict=True
                ):
                    observe(Outcome(*fields)._replace(rule=dataset.rule))
    process_group.all_reduce(counts)  # integers: a row is zero on every rank but its own
    # On the CPU, as not every device has doubles.
    seconds = torch.tensor([(perf_counter() - start) / process_group.size, busy], dtype=torch.float64)
    total, compute = process_group.all_reduce(seconds).tolist()
    owners, hard, queries = zip(*((e.class_id, e.hard, e.query) for e in episodes), strict=True)
    return summarize(counts.cpu(), owners, classes, total, compute, hard, queries)


def predict(segment: Segment, batch: Batch, truths: Sequence[Tensor]) -> list[Tensor]:
    """Masks (h, w) in {0, 1} of a batch of queries, each at the size of its own truth."""
    device = truths[0].device
    query, support, mask = (batch[key].to(device, non_blocking=True) for key in ("query", "support", "support_mask"))
    scores = segment(query, support, mask, batch["names"])
    size = query.shape[-2:]
    return [scores.item(i).at(size, truth.shape)[0].argmax(0) for i, truth in enumerate(truths)]


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

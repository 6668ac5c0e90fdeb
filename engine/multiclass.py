"""Tests with several classes at a time: N-way K-shot as PANet does, generalized few-shot segmentation as BAM does."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from dataset.benchmarks.layout import ListedMasks
from dataset.benchmarks.table import open_benchmark, test_config
from dataset.dataset import collate
from dataset.multiclass import MultiEpisode, MultiEpisodes, draw_generalized, draw_ways
from engine.evaluation import evaluating
from engine.loader import Batch, load_steps, shard_batches
from engine.metric import moment, ratio
from engine.optim import autocast
from model.inference import merge_classes
from model.methods.method import Method
from model.resize import resize
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError
from util.pixels import IGNORE

WAYS_SEEDS = (1234, 1235, 1236, 1237, 1238)  # PANet's
GENERALIZED_SEEDS = (510, 365, 382, 322, 988)  # BAM's
NOVEL_THRESHOLD = 0.9  # probability from which a pixel is of the novel class, in BAM's generalized test

Predict = Callable[[Method, Batch, Tensor], Tensor]  # batch of one and its truth (h, w) -> labels (h, w)


class ClassPixels(NamedTuple):
    """Pixels by class: what both have, what only the prediction has, what only the truth has."""

    hit: Tensor  # (C,) int64, by class number
    false: Tensor  # counted in every episode
    false_present: Tensor  # counted only where the truth has the class
    missed: Tensor


def test_ways(model: Method, cfg: Config, process_group: ProcessGroup, ways: int) -> dict[str, Any]:
    """PANet's N-way K-shot test on *training* images of the contiguous fold; metrics over its five runs.

    Sets with a mask of its own for every class are tested on their test images. A class's wrong pixels count only where
    the truth has it, as there; `miou_everywhere` counts them all. UserError for a network that was trained on novel
    classes of this fold, as that of `use_split_coco: True` was.
    """
    data = test_config(cfg)
    if cfg.data_set == data.data_set == "coco" and cfg.use_split_coco and not cfg.allow_other_split:
        raise UserError(
            "--ways: its folds of COCO are those of `use_split_coco: False`, of whose novel classes this training saw "
            "some; take a network trained on them, or this one as it is by `--opts allow_other_split True`"
        )
    data = data.model_copy(update={"use_split_coco": False})
    benchmark = open_benchmark(data)
    if isinstance(benchmark, ListedMasks):
        contents, files = benchmark.contents("train")
    else:
        index, files = benchmark.load("test")
        contents = index.classes
    novel = benchmark.wanted("test")
    runs = []
    for seed in _seeds(cfg, WAYS_SEEDS):
        count = cfg.test_episodes or 1000
        episodes = draw_ways(contents, novel, ways, cfg.shot, count, seed, label_all=data.data_set != "coco")
        dataset = MultiEpisodes(episodes, contents, files, cfg.val_size, "square", model.images.keep_ignored)
        counts = _count(model, cfg, dataset, episodes, process_group, _predict_ways, 1 + max(novel))
        present = _ious(counts, novel, counts.false_present)
        everywhere = _ious(counts, novel, counts.false)
        means = {"miou": _mean(present), "miou_everywhere": _mean(everywhere)}
        runs.append({"seed": seed, "class_iou": present, "query_images": len({e.query for e in episodes}), **means})
    return {
        "kind": "ways",
        "ways": ways,
        "metric_size": "input",
        "runs": runs,
        **_over_runs(runs, "miou", "miou_everywhere"),
    }


def test_generalized(model: Method, cfg: Config, process_group: ProcessGroup, first: str) -> dict[str, Any]:
    """BAM's generalized test: base classes by the base learner, one novel class at a time; metrics over its five runs.

    `first`: where both claim a pixel, "novel" or "base" has it. UserError for a network without a base learner.
    """
    data = test_config(cfg)
    if model.base_learner is None or cfg.test_set not in (None, cfg.data_set):
        raise UserError("--generalized: needs `ensemble: True` and the data set that the base learner was trained on")
    benchmark = open_benchmark(data)
    if not isinstance(benchmark, ListedMasks):
        raise UserError(f"--generalized: {data.data_set} has no masks of base and novel classes together")
    contents, files = benchmark.contents("test")
    base, novel = benchmark.wanted("train"), benchmark.wanted("test")
    runs = []
    for seed in _seeds(cfg, GENERALIZED_SEEDS):
        count = cfg.test_episodes or 1000
        episodes = draw_generalized(contents, base, novel, cfg.shot, count, seed, cfg.draw_workers)
        dataset = MultiEpisodes(episodes, contents, files, cfg.val_size, "padded", model.images.keep_ignored)
        predict = _predict_novel_first if first == "novel" else _predict_base_first
        counts = _count(model, cfg, dataset, episodes, process_group, predict, 1 + max(*base, *novel))
        ious = _ious(counts, [*base, *novel], counts.false)
        metrics = {"miou_novel": novel, "miou_base": base, "miou_all": [*base, *novel]}
        means = {name: _mean({c: ious[c] for c in classes}) for name, classes in metrics.items()}
        runs.append({"seed": seed, "class_iou": ious, "query_images": len({e.query for e in episodes}), **means})
    return {
        "kind": "generalized",
        "first": first,
        "metric_size": "original",
        "runs": runs,
        **_over_runs(runs, *metrics),
    }


def _seeds(cfg: Config, known: Sequence[int]) -> Sequence[int]:
    """The protocol's own seeds, unless the config asks for others than the default."""
    return known if cfg.seeds == [321] else cfg.seeds


def _count(
    model: Method,
    cfg: Config,
    dataset: MultiEpisodes,
    episodes: Sequence[MultiEpisode],
    process_group: ProcessGroup,
    predict: Predict,
    size: int,
) -> ClassPixels:
    """Pixels of the episodes over all processes; class numbers are below `size`."""
    device = process_group.device
    counts = ClassPixels(*torch.zeros(4, size, dtype=torch.int64, device=device))
    batches = shard_batches(len(episodes), 1, process_group)
    loader = load_steps(dataset, batches, 1, cfg.loader_worker_count, collate)
    with evaluating(model), autocast(cfg.amp, device):
        for (batch,) in tqdm(loader, "episodes", total=len(batches), disable=process_group.no_bar, leave=False):
            tensors = {key: value.to(device) for key, value in batch.items() if key != "number"}
            truth = tensors["truth"][0]
            predicted = torch.where(truth == IGNORE, IGNORE, predict(model, tensors, truth))
            for label, class_id in episodes[batch["number"][0]].labels.items():
                found, true = predicted == label, truth == label
                hit, false, missed = (found & true).sum(), (found & ~true).sum(), (true & ~found).sum()
                for total, pixels in zip(counts, (hit, false, false * true.any(), missed), strict=True):
                    total[class_id] += pixels
    for total in counts:
        process_group.all_reduce(total)
    return counts


def _predict_ways(model: Method, batch: Batch, truth: Tensor) -> Tensor:
    """Every class on its own, then the one with the largest margin over the background."""
    query, sizes = model.embed_query(batch["query"]), (batch["query"].shape[-2:], truth.shape)
    margins = []
    for support, mask in zip(batch["support"][0], batch["support_mask"][0], strict=True):
        margins.append(model.score(query, model.encode_support(support[None], mask[None])).margin_at(*sizes))
    return merge_classes(torch.cat(margins))


def _predict_novel_first(model: Method, batch: Batch, truth: Tensor) -> Tensor:
    novel, base, label = _maps(model, batch, truth)
    return torch.where(novel, label, base)


def _predict_base_first(model: Method, batch: Batch, truth: Tensor) -> Tensor:
    novel, base, label = _maps(model, batch, truth)
    return torch.where(novel & (base == 0), label, base)


def _maps(model: Method, batch: Batch, truth: Tensor) -> tuple[Tensor, Tensor, int]:
    """Where the novel class surely is, labels of the base classes (h, w), and the novel class's label."""
    sizes = batch["query"].shape[-2:], truth.shape
    state = model.encode_support(batch["support"][:, 0], batch["support_mask"][:, 0])
    scores = model.score(model.embed_query(batch["query"]), state)
    assert scores.base is not None
    base = resize(resize(scores.base, sizes[0]).float(), sizes[1])[0]  # (1 + base classes, h, w)
    novel = scores.at(*sizes)[0].softmax(0)[1] > NOVEL_THRESHOLD
    return novel, base.argmax(0), len(base)


def _ious(counts: ClassPixels, classes: Sequence[int], false: Tensor) -> dict[int, float | None]:
    return {c: ratio(int(counts.hit[c]), int(counts.hit[c] + false[c] + counts.missed[c])) for c in classes}


def _mean(ious: dict[int, float | None]) -> float | None:
    known = [iou for iou in ious.values() if iou is not None]
    return fmean(known) if known else None


def _over_runs(runs: Sequence[dict[str, Any]], *metrics: str) -> dict[str, Any]:
    return {"aggregate": {name: moment([run[name] for run in runs if run[name] is not None]) for name in metrics}}

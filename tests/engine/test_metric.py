import json
from itertools import product
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import JaccardIndex

from engine.metric import aggregate, bootstrap_interval, count_pixels, format_table, summarize
from tests.toy import generator

CLASSES = [3, 7, 11, 15]


def random_episodes(count: int, classes: list[int]) -> list[tuple[int, Tensor, Tensor]]:
    """Class, prediction and target of episodes of various sizes, a tenth of the pixels ignored."""
    generator = torch.Generator()
    generator.seed()
    episodes = []
    for number in range(count):
        height, width = torch.randint(5, 40, (2,), generator=generator).tolist()
        target = (torch.rand(height, width, generator=generator) < 0.3).to(torch.uint8)
        prediction = torch.where(torch.rand(height, width, generator=generator) < 0.7, target, 1 - target).long()
        target[torch.rand(height, width, generator=generator) < 0.1] = 255
        target[0, 0] = 1
        episodes.append((classes[number % len(classes)], prediction, target))
    return episodes


def oracle(episodes: list[tuple[int, Tensor, Tensor]]) -> list[float]:
    """Background and foreground IoU over all pixels of all episodes."""
    jaccard = JaccardIndex(task="multiclass", num_classes=2, ignore_index=255, average="none")
    for _, prediction, target in episodes:
        jaccard.update(prediction.flatten(), target.long().flatten())
    return jaccard.compute().tolist()


def table(episodes: list[tuple[int, Tensor, Tensor]]) -> Tensor:
    return torch.stack([count_pixels(prediction, target) for _, prediction, target in episodes])


def test_counts_are_integers_and_leave_ignored_pixels_out() -> None:
    prediction = torch.tensor([[1, 1, 0, 0, 1]])
    target = torch.tensor([[1, 0, 1, 0, 255]], dtype=torch.uint8)
    counts = count_pixels(prediction, target)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 3], [1, 3]]


def test_metrics_agree_with_torchmetrics() -> None:
    episodes = random_episodes(24, CLASSES)
    result = summarize(table(episodes), [c for c, _, _ in episodes], CLASSES)
    background, foreground = oracle(episodes)
    assert result.piou == pytest.approx(foreground, abs=1e-6)
    assert result.fb_iou == pytest.approx((background + foreground) / 2, abs=1e-6)
    per_class = {c: oracle([episode for episode in episodes if episode[0] == c])[1] for c in CLASSES}
    assert result.class_iou == pytest.approx(per_class, abs=1e-6)
    assert result.miou == pytest.approx(fmean(per_class.values()), abs=1e-6)
    per_episode = [oracle([episode])[1] for episode in episodes]
    assert result.episode_iou == pytest.approx(per_episode, abs=1e-6)
    assert result.mean_episode_iou == pytest.approx(fmean(per_episode), abs=1e-6)


def test_classes_without_episodes_are_null_and_do_not_count() -> None:
    episodes = random_episodes(6, [3, 11])
    result = summarize(table(episodes), [c for c, _, _ in episodes], CLASSES)
    assert result.class_iou[7] is None and result.class_iou[15] is None
    assert result.class_episodes == {3: 3, 7: 0, 11: 3, 15: 0}
    first, second = result.class_iou[3], result.class_iou[11]
    assert first is not None and second is not None
    assert result.miou == pytest.approx((first + second) / 2)
    assert json.loads(result.model_dump_json())["class_iou"]["7"] is None


def test_a_drawn_class_that_is_missed_counts_as_zero() -> None:
    target = torch.ones(4, 4)
    counts = torch.stack([count_pixels(torch.zeros(4, 4), target), count_pixels(target, target)])
    result = summarize(counts, [3, 7], [3, 7])
    assert result.class_iou == {3: 0.0, 7: 1.0}
    assert result.miou == 0.5


def test_an_episode_of_ignored_pixels_tells_nothing() -> None:
    empty = count_pixels(torch.ones(4, 4), torch.full((4, 4), 255))
    full = count_pixels(torch.ones(4, 4), torch.ones(4, 4))
    result = summarize(torch.stack([empty, full]), [3, 7], [3, 7])
    assert result.episode_iou == [None, 1.0]
    assert result.class_iou == {3: None, 7: 1.0}
    with pytest.raises(ValueError, match="no episode"):
        summarize(empty[None], [3], [3])


def test_interval_agrees_with_scipy_and_is_repeatable() -> None:
    values = np.random.default_rng().random(300)
    low, high = bootstrap_interval(values.tolist())
    means = [np.random.choice(values, len(values)).mean() for _ in range(9999)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    assert bootstrap_interval(values.tolist()) == (low, high)
    assert bootstrap_interval(values.tolist(), [str(number) for number in range(300)]) == (low, high)
    assert bootstrap_interval([0.5] * 3) == (0.5, 0.5) and bootstrap_interval([0.5]) is None


def test_interval_draws_query_images_again() -> None:
    """Against all 5 ** 5 draws of images, each with all its episodes: 5 images tell as little as 5."""
    rng = generator()
    levels, owner = rng.random(5), rng.integers(5, size=400)
    owner[:5] = range(5)
    values = np.clip(levels[owner] + rng.normal(0, 0.02, 400), 0, 1)
    images = [f"image{number}" for number in owner]
    by_image = [values[owner == image] for image in range(5)]
    draws = product(by_image, repeat=5)
    means = np.array([np.concatenate(drawn).mean() for drawn in draws])
    order = rng.permutation(400)
    found = bootstrap_interval(values.tolist(), images)
    again = bootstrap_interval(values[order].tolist(), [images[number] for number in order])
    for low, high in (found, again):
        for end, share in ((low, 0.025), (high, 0.975)):
            off = 0.018  # five standard errors of a share of 2,000 draws; many draws may have the end's very mean
            assert (means < end - 1e-9).mean() < share + off and (means < end + 1e-9).mean() > share - off
    episodes = bootstrap_interval(values.tolist())
    assert high - low > 3 * (episodes[1] - episodes[0])
    assert bootstrap_interval(values.tolist(), ["one"] * 400) is None


def test_a_table_says_how_many_images_there_are() -> None:
    episodes = random_episodes(12, CLASSES)
    queries = [f"{number % 5}.jpg" for number in range(12)]
    result = summarize(table(episodes), [c for c, _, _ in episodes], CLASSES, queries=queries)
    text = format_table({"one": result}, dict.fromkeys(CLASSES, "thing"))
    assert any(line.split() == ["distinct", "query", "images", "5"] for line in text.splitlines())
    known = [iou for iou in result.episode_iou if iou is not None]
    assert result.query_images == 5 and result.interval == bootstrap_interval(known, queries)
    of_class = {c: [count_pixels(p, t) for owner, p, t in episodes if owner == c] for c in CLASSES}
    sums = {c: torch.stack(counts).sum(0) for c, counts in of_class.items()}
    assert result.class_pixels == {c: pixels.tolist() for c, pixels in sums.items()}


def test_aggregate_over_seeds() -> None:
    results = []
    for _ in range(4):
        episodes = random_episodes(8, CLASSES)
        results.append(summarize(table(episodes), [c for c, _, _ in episodes], CLASSES, 8.0, 4.0))
    figures = aggregate(results)
    miou = [result.miou for result in results]
    assert (figures["miou"].mean, figures["miou"].std) == pytest.approx((np.mean(miou), np.std(miou, ddof=1)))
    assert figures["seconds_per_episode"].mean == 0.5
    assert (aggregate(results[:1])["miou"].mean, aggregate(results[:1])["miou"].std) == (results[0].miou, None)


def test_hard_episodes_are_summed_by_themselves() -> None:
    episodes = random_episodes(24, CLASSES)
    hard = [number % 3 == 0 and episode[0] != CLASSES[0] for number, episode in enumerate(episodes)]
    result = summarize(table(episodes), [c for c, _, _ in episodes], CLASSES, hard=hard)
    assert result.episode_hard == hard
    of_class = {c: [e for e, is_hard in zip(episodes, hard, strict=True) if is_hard and e[0] == c] for c in CLASSES}
    expected = {c: oracle(some)[1] if some else None for c, some in of_class.items()}
    assert result.hard_class_iou == pytest.approx(expected, abs=1e-6) and expected[CLASSES[0]] is None
    known = [value for value in expected.values() if value is not None]
    assert result.hard_miou == pytest.approx(fmean(known), abs=1e-6)
    assert f"{100 * result.hard_miou:.2f}" in format_table({"one": result}, dict.fromkeys(CLASSES, "thing"))
    assert summarize(table(episodes), [c for c, _, _ in episodes], CLASSES).hard_miou is None

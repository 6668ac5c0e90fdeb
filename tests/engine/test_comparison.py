import numpy as np
import pytest

from engine.comparison import EpisodePixels, difference, moved, wins
from tests.toy import generator


def answers(rng: np.random.Generator, trainings: int, lead: float, classes: np.ndarray) -> EpisodePixels:
    """Episodes of 100 pixels of union each, of which about half plus `lead` are right."""
    right = rng.binomial(100, 0.5 + lead, (trainings, len(classes)))
    return EpisodePixels(classes, rng.random(len(classes)) < 0.5, np.stack([right, np.full_like(right, 100)], axis=-1))


def miou(one: EpisodePixels) -> float:
    """Mean over trainings of the mean over classes of summed intersection over summed union."""
    values = []
    for pixels in one.pixels:
        sums = [pixels[one.classes == c].sum(0) for c in set(one.classes.tolist())]
        values.append(np.mean([i / u for i, u in sums]))
    return float(np.mean(values))


@pytest.mark.parametrize("trainings", [(1, 1), (3, 2)])
def test_difference_is_that_of_mious_and_its_interval_is_that_of_a_plain_bootstrap(trainings: tuple[int, int]) -> None:
    rng = generator()
    classes = rng.integers(3, 6, 60)
    classes[:3] = 3, 4, 5
    first, second = answers(rng, trainings[0], 0.1, classes), answers(rng, trainings[1], 0.0, classes)
    found = difference([(first, second)])
    assert found is not None and found.mean == pytest.approx(miou(first) - miou(second), abs=1e-12)
    again = []
    for _ in range(600):
        episodes = rng.integers(60, size=60)
        drawn = []
        for one in (first, second):
            runs = rng.integers(len(one.pixels), size=len(one.pixels))
            drawn.append(miou(EpisodePixels(classes[episodes], one.hard[episodes], one.pixels[runs][:, episodes])))
        again.append(drawn[0] - drawn[1])
    width = found.high - found.low
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=0.2 * width)
    assert 0 < found.low < found.mean < found.high


def test_pairing_makes_the_interval_of_equal_methods_nothing() -> None:
    rng = generator()
    one = answers(rng, 1, 0.0, rng.integers(1, 3, 30))
    better = replace_pixels(one, 10)
    found = difference([(better, one), (better, one)])
    assert found is not None and tuple(found) == pytest.approx((0.1, 0.1, 0.1))
    assert difference([(one, one)]) == (0, 0, 0)
    assert found.text() == "+10.0 [+10.0, +10.0]"


def replace_pixels(one: EpisodePixels, more: int) -> EpisodePixels:
    return one._replace(pixels=one.pixels + np.array([more, 0]))


def test_hard_episodes_alone_and_too_few_of_them() -> None:
    rng = generator()
    one = answers(rng, 2, 0.0, np.array([1, 1, 2, 2]))._replace(hard=np.array([True, False, True, False]))
    assert one.hard_only().pixels.shape == (2, 2, 2) and one.hard_only().classes.tolist() == [1, 2]
    few = one._replace(hard=np.array([True, False, False, False])).hard_only()
    assert difference([(few, few)]) is None and difference([]) is None


def test_wins_ties_and_losses_by_class() -> None:
    classes = np.array([7, 7, 7, 9])
    union = np.full(4, 200)
    first = EpisodePixels(
        classes, classes > 0, np.stack([np.array([100, 100, 60, 0]), np.array([200, 200, 200, 0])], -1)[None]
    )
    second = EpisodePixels(classes, classes > 0, np.stack([np.array([99, 60, 100, 0]), union], -1)[None])
    assert wins((first, second)) == {7: (1, 1, 1), 9: (1, 0, 0)}  # nothing there and nothing found is right


def test_moved_counts_episodes_whose_mean_iou_differs_by_more_than_two_points() -> None:
    first = np.array([[[50, 100], [50, 100], [50, 100], [0, 0]], [[50, 100], [50, 100], [50, 100], [0, 0]]])
    second = np.array([[[53, 100], [53, 100], [51, 100], [0, 0]], [[52, 100], [47, 100], [52, 100], [0, 0]]])
    one, other = (EpisodePixels(np.ones(4), np.zeros(4, bool), pixels) for pixels in (first, second))
    assert moved([(one, other)]) == moved([(one, other), (one, other)]) == 1 / 4 and moved([(one, one)]) == 0

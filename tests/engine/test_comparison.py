import numpy as np
import pytest

from engine.comparison import EpisodePixels, difference, moved, wins
from tests.toy import generator


def answers(rng: np.random.Generator, trainings: int, lead: float, classes: np.ndarray) -> EpisodePixels:
    """Episodes of 100 pixels of union each, of which about half plus `lead` are right."""
    right = rng.binomial(100, 0.5 + lead, (trainings, len(classes)))
    pixels = np.stack([right, np.full_like(right, 100)], axis=-1)
    return EpisodePixels(classes, rng.random(len(classes)) < 0.5, pixels, np.arange(len(classes)).astype(str))


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
    found = difference([[(first, second)]])
    assert found is not None and found.mean == pytest.approx(miou(first) - miou(second), abs=1e-12)
    again = []
    for _ in range(600):
        episodes = rng.integers(60, size=60)
        drawn = []
        for one in (first, second):
            runs = rng.integers(len(one.pixels), size=len(one.pixels))
            drawn.append(miou(one._replace(classes=classes[episodes], pixels=one.pixels[runs][:, episodes])))
        again.append(drawn[0] - drawn[1])
    width = found.high - found.low
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=0.2 * width)
    assert 0 < found.low < found.mean < found.high


def test_query_images_are_drawn_again_over_all_seeds_of_a_fold() -> None:
    """Against images drawn one by one with all their episodes, the same ones for both methods and both seeds."""
    rng = generator()
    folds, levels = [], rng.normal(0, 0.2, (2, 6))  # two folds of 6 images, by how far the first method is ahead there
    for number, level in enumerate(levels):
        seeds = []
        for _ in range(2):
            image = np.concatenate([np.arange(6), rng.integers(6, size=24)])
            classes = np.concatenate([[1, 2], rng.integers(1, 3, 28)])
            two = []
            for lead in (np.zeros(6), level):
                right = rng.binomial(100, np.clip(0.5 - lead[image], 0.05, 0.95))[None]
                names = np.array([f"{number}/{i}" for i in image])
                two.append(EpisodePixels(classes, classes > 0, np.stack([right, np.full_like(right, 100)], -1), names))
            seeds.append((two[0], two[1]))
        folds.append(seeds)
    found = difference(folds)
    plain = np.mean([miou(first) - miou(second) for seeds in folds for first, second in seeds])
    assert found is not None and found.mean == pytest.approx(plain, abs=1e-12)
    again = []
    for _ in range(1500):
        values = []
        for number, seeds in enumerate(folds):
            drawn = [f"{number}/{i}" for i in rng.integers(6, size=6)]
            for pair in seeds:
                taken = np.concatenate([np.flatnonzero(pair[0].images == name) for name in drawn])
                both = [miou(one._replace(classes=one.classes[taken], pixels=one.pixels[:, taken])) for one in pair]
                values.append(both[0] - both[1])
        again.append(np.mean(values))
    width = found.high - found.low
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=0.15 * width)


def test_pairing_makes_the_interval_of_equal_methods_nothing() -> None:
    rng = generator()
    one = answers(rng, 1, 0.0, rng.integers(1, 3, 30))
    better = replace_pixels(one, 10)
    found = difference([[(better, one)], [(better, one)]])
    assert found is not None and (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert set(difference([[(one, one)]]).model_dump().values()) == {0.0}
    assert found.text() == "+10.0 [+10.0, +10.0]"


def replace_pixels(one: EpisodePixels, more: int) -> EpisodePixels:
    return one._replace(pixels=one.pixels + np.array([more, 0]))


def test_hard_episodes_alone_and_too_few_of_them() -> None:
    rng = generator()
    one = answers(rng, 2, 0.0, np.array([1, 1, 2, 2]))._replace(hard=np.array([True, False, True, False]))
    assert one.hard_only().pixels.shape == (2, 2, 2) and one.hard_only().classes.tolist() == [1, 2]
    few = one._replace(hard=np.array([True, False, False, False])).hard_only()
    assert difference([[(few, few)]]) is None and difference([]) is None and difference([[]]) is None


def test_wins_ties_and_losses_by_class() -> None:
    classes = np.array([7, 7, 7, 9])
    union = np.full(4, 200)
    pixels = np.stack([np.array([100, 100, 60, 0]), np.array([200, 200, 200, 0])], -1)[None]
    first = EpisodePixels(classes, classes > 0, pixels, classes.astype(str))
    second = first._replace(pixels=np.stack([np.array([99, 60, 100, 0]), union], -1)[None])
    assert wins((first, second)) == {7: (1, 1, 1), 9: (1, 0, 0)}  # nothing there and nothing found is right


def test_moved_counts_episodes_whose_mean_iou_differs_by_more_than_two_points() -> None:
    first = np.array([[[50, 100], [50, 100], [50, 100], [0, 0]], [[50, 100], [50, 100], [50, 100], [0, 0]]])
    second = np.array([[[53, 100], [53, 100], [51, 100], [0, 0]], [[52, 100], [47, 100], [52, 100], [0, 0]]])
    names = np.array([*"abcd"])
    one, other = (EpisodePixels(np.ones(4), np.zeros(4, bool), pixels, names) for pixels in (first, second))
    assert moved([(one, other)]) == moved([(one, other), (one, other)]) == 1 / 4 and moved([(one, one)]) == 0

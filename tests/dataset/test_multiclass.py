"""Draws of N-way and generalized episodes against their rules, and the items of both layouts."""

import random

import pytest
import torch

from dataset.multiclass import draw_generalized, draw_ways
from util.errors import UserError

CONTENTS = {f"i{n}": sorted({n % 7 + 1, (n * n) % 7 + 1}) for n in range(60)} | {"empty": []}


def images_of(class_id: int) -> list[str]:
    return [image for image, present in CONTENTS.items() if class_id in present]


@pytest.mark.parametrize(("ways", "shot", "label_all"), [(1, 1, True), (3, 2, True), (2, 1, False)])
def test_ways_are_drawn_by_panets_rule(ways: int, shot: int, label_all: bool) -> None:
    seed, novel = random.randrange(10**6), [1, 3, 4, 6]
    episodes = draw_ways(CONTENTS, novel, ways, shot, 50, seed, label_all)
    rng = random.Random(seed)
    place = rng.choices(range(ways), k=1)[0]
    for episode in episodes:
        assert episode.classes == rng.sample(novel, ways)
        for number, class_id in enumerate(episode.classes):
            images = rng.sample(images_of(class_id), shot + (number == place))
            assert episode.support[number] == images[:shot]
            if number == place:
                assert episode.query == images[shot]
        marked = range(ways) if label_all else [place]
        assert episode.labels == {number + 1: episode.classes[number] for number in marked}


def test_generalized_draws_by_bams_rule() -> None:
    """Against real workers' order: query i of a pass belongs to worker i mod W."""
    seed, workers, shot, base, novel = random.randrange(10**6), 3, 2, [1, 2, 5], [3, 4, 6, 7]
    episodes = draw_generalized(CONTENTS, base, novel, shot, 100, seed, workers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        seeds = [int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2)]
    streams: list[random.Random] = []
    for number, episode in enumerate(episodes):
        turn, position = divmod(number, len(CONTENTS))
        if position == 0:
            streams = [random.Random(seeds[turn] + w) for w in range(workers)]
        rng, present = streams[position % workers], CONTENTS[episode.query]
        assert episode.query == list(CONTENTS)[position]
        fitting = [c for c in novel if c in present]
        choices = fitting if fitting and not set(present) & set(base) else novel
        (class_id,) = episode.classes
        assert class_id == rng.choice(choices)
        images = images_of(class_id)
        support: list[str] = []
        for _ in range(shot):
            rng.randint(1, len(images))
            while (name := images[rng.randint(1, len(images)) - 1]) in (episode.query, *support):
                pass
            support.append(name)
        assert episode.support == [support] and episode.labels == {1: 1, 2: 2, 3: 5, 4: class_id}


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="--ways 5: the fold has 4 classes"):
        draw_ways(CONTENTS, [1, 3, 4, 6], 5, 1, 1, 0, True)
    with pytest.raises(UserError, match="class 9: 0 images, but an episode needs 2"):
        draw_ways(CONTENTS, [1, 9], 1, 1, 1, 0, True)

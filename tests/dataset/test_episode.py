"""Episodes: the released draws, the seeded draws, files of episodes, impossible classes."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataset.episode import (
    Episode,
    check_possible,
    draw_episode,
    draw_episodes,
    empty_classes,
    read_episodes,
    write_episodes,
)
from dataset.index import ImageIndex
from util.errors import UserError

FIXTURE = json.loads((Path(__file__).parent.parent / "data" / "episodes.json").read_text())


def make_index(classes: dict[str, list[int]], wanted: list[int]) -> ImageIndex:
    return ImageIndex(list(classes), classes, {c: [name for name in classes if c in classes[name]] for c in wanted})


def random_index(images: int = 60, wanted: tuple[int, ...] = (2, 5, 9)) -> ImageIndex:
    rng = random.Random()
    drawn = [*6 * wanted, *(rng.choice(wanted) for _ in range(images))]  # six images of each at least
    names = {f"image{i}": sorted({drawn[i], *rng.sample(range(1, 12), 3)}) for i in range(images)}
    return make_index(names, list(wanted))


def test_released_protocol_draws_the_reference_episodes() -> None:
    index = make_index({image["name"]: image["classes"] for image in FIXTURE["images"]}, FIXTURE["novel_classes"])
    expected = [Episode(e["query"], e["class"], e["support"]) for e in FIXTURE["episodes"]]
    assert len(expected) > len(index.images)  # more than one pass
    args = {key: FIXTURE[key] for key in ("seed", "workers")}
    assert draw_episodes(index, FIXTURE["shot"], len(expected), **args) == expected
    assert draw_episodes(index, FIXTURE["shot"], 7, **args) == expected[:7]
    assert draw_episodes(index, FIXTURE["shot"], len(expected), seed=0, workers=FIXTURE["workers"]) != expected


class NaiveEpisodes(torch.utils.data.Dataset):
    """Draws as the protocol is told: in the loader's workers, from the global generator."""

    def __init__(self, index: ImageIndex, shot: int) -> None:
        self.index, self.shot = index, shot

    def __len__(self) -> int:
        return len(self.index.images)

    def __getitem__(self, item: int) -> tuple[str, int, list[str]]:
        query = self.index.images[item]
        classes = [c for c in self.index.by_class if c in self.index.classes[query]]
        class_id = classes[random.randint(1, len(classes)) - 1]
        images = self.index.by_class[class_id]
        support: list[str] = []
        for _ in range(self.shot):
            random.randint(1, len(images))
            while (name := images[random.randint(1, len(images)) - 1]) in (query, *support):
                pass
            support.append(name)
        return query, class_id, support


@pytest.mark.parametrize("workers", [1, 3])
def test_released_protocol_is_what_real_loader_workers_draw(workers: int) -> None:
    index, seed = random_index(25), random.randrange(1000)
    loader = torch.utils.data.DataLoader(NaiveEpisodes(index, 2), None, num_workers=workers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = [Episode(*item) for _ in range(3) for item in loader]
    assert draw_episodes(index, 2, 75, seed=seed, workers=workers) == drawn


@pytest.mark.parametrize("protocol", ["released", "seeded"])
def test_drawing_neither_reads_nor_disturbs_global_generators(protocol: str) -> None:
    index = random_index()
    random.seed(1)
    torch.manual_seed(1)
    first = draw_episodes(index, 2, 100, protocol=protocol)
    after = random.random(), torch.rand(()).item()
    random.seed(1)
    torch.manual_seed(1)
    assert after == (random.random(), torch.rand(()).item())
    assert draw_episodes(index, 2, 100, protocol=protocol) == first
    assert draw_episodes(index, 2, 40, protocol=protocol) == first[:40]
    assert draw_episodes(index, 2, 100, seed=4, protocol=protocol) != first


@pytest.mark.parametrize("protocol", ["released", "seeded"])
@pytest.mark.parametrize("shot", [1, 5])
def test_episodes_are_well_formed(protocol: str, shot: int) -> None:
    index = random_index()
    for episode in draw_episodes(index, shot, 300, seed=7, protocol=protocol):
        assert episode.class_id in index.by_class and episode.class_id in index.classes[episode.query]
        assert len({episode.query, *episode.support}) == shot + 1
        assert set(episode.support) <= set(index.by_class[episode.class_id])


def test_draws_are_uniform() -> None:
    index = make_index({f"i{n}": [1, 2] for n in range(6)}, [1, 2])
    rng = random.Random(0)
    episodes = [draw_episode(index, "i0", 2, rng) for _ in range(5000)]
    supports = Counter(tuple(e.support) for e in episodes)
    assert len(supports) == 20 and min(supports.values()) > 180  # 5 * 4 ordered pairs, 250 of each expected
    assert 2300 < Counter(e.class_id for e in episodes)[1] < 2700


def test_query_below_the_threshold_may_be_missing_from_its_class_list() -> None:
    index = make_index({"a": [1], "b": [1], "c": [1]}, [1])
    index.by_class[1].remove("a")
    for protocol in ("released", "seeded"):
        for episode in draw_episodes(index, 1, 30, protocol=protocol):
            assert episode.support[0] in {"b", "c"} - {episode.query}


@pytest.mark.parametrize("protocol", ["released", "seeded"])
def test_classes_that_count_nowhere_are_left_out_and_listed(protocol: str) -> None:
    """Class 11 is in no image, class 7 only too small to count."""
    index = make_index({f"i{n}": [4, 7] for n in range(8)}, [4, 7, 11])
    index.by_class[7] = []
    check_possible(index, 5)
    assert {episode.class_id for episode in draw_episodes(index, 5, 40, protocol=protocol)} == {4}
    assert empty_classes(index, {4: "cat", 7: "dog", 11: "cow"}) == "7 dog, 11 cow"
    index.by_class[7] = ["i1"]  # now an episode can need it
    with pytest.raises(UserError, match=r"^class 7: 1 images, but 5-shot"):
        draw_episodes(index, 5, 5, protocol=protocol)


def test_mistakes_are_told() -> None:
    index, empty = make_index({"a": [1], "b": [1], "c": [2]}, [1]), ImageIndex([], {}, {})
    for drawn, shot, protocol, message in (
        (index, 1, "released", r"^c: no wanted class"),
        (index, 1, "random", "protocol: 'random'"),
        (index, 0, "released", "shot: 0"),
        (empty, 1, "released", "no image"),
    ):
        with pytest.raises(UserError, match=message):
            draw_episodes(drawn, shot, 3, protocol=protocol)


def test_episodes_survive_a_file(tmp_path: Path) -> None:
    episodes = draw_episodes(random_index(), 3, 20)
    path = tmp_path / "new" / "episodes.jsonl"
    write_episodes(path, episodes)
    assert read_episodes(path) == episodes
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_episodes(marked) == episodes
    write_episodes(marked, [episodes[0], replace(episodes[1], support=["a", episodes[1].query])])
    with pytest.raises(UserError, match=rf"marked\.jsonl:2: the query {episodes[1].query} is its own support"):
        read_episodes(marked)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no episode"):
        read_episodes(tmp_path / "empty.jsonl")
    with path.open("a") as text:
        text.write('{"query": "x", "class_id": 1}\n')
    for file, message in ((path, r"episodes\.jsonl:21: not an episode"), (tmp_path / "absent.jsonl", "absent")):
        with pytest.raises(UserError, match=message):
            read_episodes(file)

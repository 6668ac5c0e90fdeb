"""Drawing episodes: a query image, one of its classes, and K support images of that class."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dataset.index import ImageIndex
from util.errors import UserError
from util.files import atomic_write, numbered_lines

Item = TypeVar("Item")


@dataclass(frozen=True)
class Episode:
    """One episode by image names; support in drawing order."""

    query: str
    class_id: int
    support: list[str]
    hard: bool = False  # whether the query shows another annotated class too, which evaluation fills in
    support_class: int | None = None  # what the supports show, where it is not class_id

    def fields(self) -> dict[str, Any]:
        """What an episodes file holds of it."""
        return {"query": self.query, "class_id": self.class_id, "support": self.support}


def draw_episodes(
    index: ImageIndex, shot: int, count: int, seed: int = 321, protocol: str = "released", workers: int = 8
) -> list[Episode]:
    """Draw `count` episodes.

    Protocols: "released", the released evaluation's draws, with as many simulated loader `workers`, whatever number
    really runs; "seeded", each from (seed, number) alone; "hsnet" (HSNet, Matcher, PATNet ...) and "fptrans" (FPTrans
    on COCO -> PASCAL), whose seeds are their own. UserError when a class has too few images, for an unknown protocol,
    and for an image without a wanted class.
    """
    if protocol == "hsnet":
        return _draw_hsnet(index, shot, count)
    check_possible(index, shot)
    if protocol == "fptrans":
        return _draw_fptrans(index, shot, count)
    if protocol == "released":
        return _draw_released(index, shot, count, seed, workers)
    if protocol == "seeded":
        return [draw_seeded(index, shot, seed, number) for number in range(count)]
    raise UserError(f"protocol: {protocol!r} is unknown; use released, seeded, hsnet or fptrans")


def check_possible(index: ImageIndex, shot: int) -> None:
    """UserError naming the first class that an episode can need but that has fewer than shot + 1 images.

    Classes without any image are never drawn.
    """
    if shot < 1:
        raise UserError(f"shot: {shot}; an episode needs at least one support image")
    if not index.images:
        raise UserError("no image to draw a query from; check the list files, split and area_threshold")
    for class_id, images in index.by_class.items():
        if 0 < len(set(images)) <= shot:
            raise UserError(
                f"class {class_id}: {len(set(images))} images, but {shot}-shot episodes need at least {shot + 1}; "
                "add images or lower shot or area_threshold"
            )


def empty_classes(index: ImageIndex, names: Mapping[int, str]) -> str:
    """The wanted classes that count in no image, as `3 cat, 7 dog`."""
    return ", ".join(f"{class_id} {names[class_id]}" for class_id, images in index.by_class.items() if not images)


def draw_seeded(index: ImageIndex, shot: int, seed: int, number: int) -> Episode:
    """Episode `number` of the seeded protocol: uniform, a function of (seed, number) alone."""
    rng = random.Random(f"{seed}/{number}")
    return draw_episode(index, index.images[rng.randrange(len(index.images))], shot, rng)


def draw_episode(index: ImageIndex, query: str, shot: int, rng: random.Random, class_id: int | None = None) -> Episode:
    """A class of the query, uniform among those wanted, and `shot` other images of it, uniform without replacement.

    `class_id` names the class instead.
    """
    classes = wanted_classes(index, query) if class_id is None else [class_id]
    class_id = classes[rng.randrange(len(classes))]
    images = index.by_class[class_id]
    candidates = rng.sample(images, shot + 1)  # one to spare, in case the query is among them
    return Episode(query, class_id, [image for image in candidates if image != query][:shot])


def draw_absent(index: ImageIndex, query: str, shot: int, rng: random.Random) -> Episode | None:
    """A class that the query lacks, uniform among those wanted, and `shot` images of it; None if it shows them all."""
    absent = absent_classes(index, query)
    if not absent:
        return None
    class_id = rng.choice(absent)
    return Episode(query, class_id, rng.sample(index.by_class[class_id], shot))


def absent_classes(index: ImageIndex, image: str) -> list[int]:
    """The wanted classes of which an image shows nothing."""
    return [c for c, images in index.by_class.items() if images and c not in index.classes[image]]


def hard_images(index: ImageIndex) -> dict[int, list[str]]:
    """Of each class the images, in list order, that show another wanted class too."""
    return {
        class_id: [image for image in images if len(wanted_classes(index, image)) > 1]
        for class_id, images in index.by_class.items()
    }


def wanted_classes(index: ImageIndex, image: str) -> list[int]:
    """The wanted classes in an image's mask, ascending, however small; UserError when there is none.

    A class that counts in no image has none for a support, and is left out.
    """
    classes = sorted(class_id for class_id in set(index.classes[image]) if index.by_class.get(class_id))
    if not classes:
        raise UserError(f"{image}: no wanted class in its mask ({sorted(index.by_class)}); remove it from the index")
    return classes


def _draw_released(index: ImageIndex, shot: int, count: int, seed: int, workers: int) -> list[Episode]:
    """The released evaluation's draws: passes over the list, query i of a pass drawn by worker i mod `workers`."""
    episodes: list[Episode] = []
    passes = released_streams(seed, workers)
    while len(episodes) < count:
        streams = next(passes)
        for number, query in enumerate(index.images[: count - len(episodes)]):
            rng, classes = streams[number % workers], wanted_classes(index, query)
            class_id = classes[rng.randint(1, len(classes)) - 1]
            episodes.append(Episode(query, class_id, draw_support(index.by_class[class_id], query, shot, rng)))
    return episodes


def released_streams(seed: int, workers: int) -> Iterator[list[random.Random]]:
    """The generators of the simulated loader workers, anew for every pass over the list."""
    base_seeds = torch.Generator().manual_seed(seed)  # the stream of torch.manual_seed(seed), and nobody else's
    while True:
        base_seed = int(torch.empty((), dtype=torch.int64).random_(generator=base_seeds).item())
        yield [random.Random(base_seed + worker) for worker in range(workers)]


def draw_support(images: Sequence[str], query: str, shot: int, rng: random.Random) -> list[str]:
    """Different supports of a class, none of them the query, as the released code draws them."""
    drawn: list[int] = []
    for _ in range(shot):
        rng.randint(1, len(images))  # the released code draws once before it starts looking
        position = rng.randint(1, len(images)) - 1
        while images[position] == query or position in drawn:
            position = rng.randint(1, len(images)) - 1
        drawn.append(position)
    return [images[position] for position in drawn]


def _draw_hsnet(index: ImageIndex, shot: int, count: int) -> list[Episode]:
    """HSNet's draws: one stream of NumPy's legacy generator, seed 0; a support may repeat, but is never the query."""
    rng, classes = np.random.RandomState(0), list(index.by_class)
    least = shot + 1 if index.distinct else 2
    for class_id, names in index.by_class.items():
        usable = [name for name in dict.fromkeys(names) if any(index.objects.get((class_id, name), ("itself",)))]
        if len(usable) < least:
            raise UserError(f"class {class_id}: {len(usable)} images, but its episodes need {least}; check the lists")

    def choice(items: Sequence[Item]) -> Item:
        return items[rng.permutation(len(items))[0]]  # as choice(items, 1, replace=False) takes it

    def draw(class_id: int, others: Sequence[str]) -> tuple[str, str]:
        """An image that is none of the others, and what it is called: itself, or one object in it."""
        while True:
            image = choice(index.by_class[class_id])
            if image in others:
                continue
            found = choice(index.objects[class_id, image]) if index.objects else image
            if found is not None:
                return image, found

    episodes = []
    for number in range(count):
        if index.lines:
            query_image, class_id = index.lines[number % len(index.lines)]
            query = query_image
        else:
            class_id = choice(classes) if index.draw_class else classes[number % len(classes)]
            query_image, query = draw(class_id, ())
        drawn, supports = [query_image], []
        for _ in range(shot):
            image, support = draw(class_id, drawn)
            supports.append(support)
            if index.distinct:
                drawn.append(image)
        episodes.append(Episode(query, class_id, supports))
    return episodes


def _draw_fptrans(index: ImageIndex, shot: int, count: int) -> list[Episode]:
    """FPTrans's draws on COCO -> PASCAL: the list in another order every pass, supports distinct; seed 5678."""
    rng = np.random.RandomState(5678)
    episodes: list[Episode] = []
    while len(episodes) < count:
        for position in rng.permutation(len(index.images))[: count - len(episodes)]:
            query = index.images[position]
            class_id = int(rng.choice(wanted_classes(index, query)))
            images, support = index.by_class[class_id], [query]
            while len(support) <= shot:
                if (name := images[int(rng.choice(len(images), 1)[0])]) not in support:
                    support.append(name)
            episodes.append(Episode(query, class_id, support[1:]))
    return episodes


def write_episodes(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Write one JSON object a line: query, class_id, support (in drawing order)."""
    atomic_write(Path(path), "".join(json.dumps(episode.fields()) + "\n" for episode in episodes))


def read_episodes(path: str | Path) -> list[Episode]:
    """Read what write_episodes wrote; UserError names the line that is no episode, or whose query is its support."""
    episodes = []
    for number, line in numbered_lines(Path(path), "episodes file"):
        try:
            fields = json.loads(line)
            episode = Episode(str(fields["query"]), int(fields["class_id"]), [str(name) for name in fields["support"]])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{path}:{number}: not an episode {{"query": ..., "class_id": ..., "support": [...]}}'
            ) from None
        if episode.query in episode.support:
            raise UserError(f"{path}:{number}: the query {episode.query} is its own support; take another support")
        episodes.append(episode)
    if not episodes:
        raise UserError(f"{path}: holds no episode; write some by test.py --episodes-out, one a line")
    return episodes

"""Episodes of public protocols, against recorded digests where the lists are at hand and plain draws elsewhere."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.toy import generator
from tools.episodes import main
from util.errors import UserError

SPLITS = Path(__file__).resolve().parents[3] / "shared/spec/splits"
FIXTURE = SPLITS / "hsnet_episodes.json"
RECORDED = json.loads(FIXTURE.read_text()) if FIXTURE.is_file() else {}
NAMES = {"isic": "isic2018", "isaid": "isaid5i"}


def draw(tmp_path: Path, name: str, *words: object) -> list[list[str]]:
    """The lines that the tool writes, in words."""
    main([name, *map(str, words), "--out", str(tmp_path / "new/episodes.txt")])
    return [line.split() for line in (tmp_path / "new/episodes.txt").read_text().splitlines()]


@pytest.mark.skipif(not RECORDED, reason="the public lists are not at hand")
@pytest.mark.parametrize("case", sorted(RECORDED))
def test_recorded_digests(case: str, tmp_path: Path) -> None:
    name, part, *_, shot = case.split()
    words = ["--fold", part[-1]] if part.startswith("fold") else ["--count", part] if part.isdecimal() else []
    episodes = draw(tmp_path, NAMES.get(name, name), *words, "--shot", shot.split("-")[0], "--lists", SPLITS)
    for position, expected in [*enumerate(RECORDED[case]["first"]), (-1, RECORDED[case]["last"])]:
        assert episodes[position] == [str(item) for item in expected]
    text = (tmp_path / "new/episodes.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == RECORDED[case]["sha256"]


def naive_supports(rng: np.random.RandomState, images: list[str], query: str, shot: int) -> list[str]:
    """Supports as public code draws them."""
    supports: list[str] = []
    while len(supports) < shot:
        name = rng.choice(images, 1, replace=False)[0]
        if name != query:
            supports.append(name)
    return supports


@pytest.mark.parametrize("shot", [1, 7])
def test_queries_by_line(shot: int, tmp_path: Path) -> None:
    """PASCAL-5i in HSNet's own form, iSAID-5i in its own and in the short one; more episodes than lines."""
    rng = generator()
    corners = [(f"P{i:04}", *rng.integers(0, 5000, 2).tolist()) for i in range(30)]
    patches = [f"{name}_{y}_{y + 256}_{x}_{x + 256}" for name, y, x in corners]
    classes = [*[*range(11, 16)] * 2, *rng.integers(11, 16, 20).tolist()] * 2  # two images of every class at least
    lines = [(patches[i % 30], class_id) for i, class_id in enumerate(classes)]
    own = "".join(f"{name}__{class_id:02}\n" for name, class_id in lines)
    short = "".join(f"{'_'.join(map(str, corners[i % 30]))} {class_id}\n" for i, class_id in enumerate(classes))
    for path, text in (
        ("a/isaid/val/fold2.txt", own),
        ("b/isaid5i_val_fold2.txt", short),
        ("c/pascal/val/fold2.txt", own),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    stream, expected = np.random.RandomState(0), []
    for number in range(70):
        query, class_id = lines[number % 60]
        supports = naive_supports(stream, [name for name, c in lines if c == class_id], query, shot)
        expected.append([str(class_id), query, *supports])
    for name, folder in (("isaid5i", "a"), ("isaid5i", "b"), ("pascal", "c")):
        words = ("--fold", 2, "--shot", shot, "--lists", tmp_path / folder)
        assert draw(tmp_path, name, *words, "--count", 70) == expected
        assert len(draw(tmp_path, name, *words)) == (1000 if name == "pascal" else 60)


def test_drawn_classes(tmp_path: Path) -> None:
    """COCO-20i from HSNet's pickle of paths and from lines of ids."""
    rng = generator()
    ids = dict(zip(range(2, 81, 4), rng.choice(10**6, (20, 8), replace=False).tolist(), strict=True))
    (tmp_path / "coco/val").mkdir(parents=True)
    paths = {c - 1: [f"val2014/COCO_val2014_{i:012}.jpg" for i in images] for c, images in ids.items()}
    (tmp_path / "coco/val/fold1.pkl").write_bytes(pickle.dumps({**paths, 0: ["val2014/COCO_val2014_000000000001.jpg"]}))
    (tmp_path / "plain").mkdir()
    lines = [" ".join(map(str, (c, *images))) for c, images in ids.items()]
    (tmp_path / "plain/coco20i_hsnet_val_fold1.txt").write_text("\n".join(lines))
    stream, expected = np.random.RandomState(0), []
    for _ in range(200):
        class_id = stream.choice(sorted(ids), 1, replace=False)[0]
        images = [str(image) for image in ids[class_id]]
        query = stream.choice(images, 1, replace=False)[0]
        expected.append([str(class_id), query, *naive_supports(stream, images, query, 2)])
    for folder in (tmp_path, tmp_path / "plain"):
        assert draw(tmp_path, "coco", "--fold", 1, "--shot", 2, "--count", 200, "--lists", folder) == expected


def test_classes_in_turn_and_every_image_once(tmp_path: Path) -> None:
    rng = generator()
    kinds = ["seborrheic_keratosis", "nevus", "melanoma"]
    rows = {f"ISIC_{i:07}": kinds[i % 3] for i in rng.permutation(40).tolist()}
    (tmp_path / "class_id.csv").write_text("ID,Class\n" + "".join(f"{name},{kind}\n" for name, kind in rows.items()))
    for variant, order in (("patnet", kinds), ("ifa", [kinds[1], kinds[0], kinds[2]])):
        stream, expected = np.random.RandomState(0), []
        for number in range(600):
            images = sorted(name for name, kind in rows.items() if kind == order[number % 3])
            query = stream.choice(images, 1, replace=False)[0]
            expected.append([str(number % 3 + 1), query, *naive_supports(stream, images, query, 1)])
        words = "--lists", tmp_path, "--opts", "variant", variant
        main(["isic2018", "--out", str(tmp_path / "e.txt"), *map(str, words)])
        assert [line.split() for line in (tmp_path / "e.txt").read_text().splitlines()] == expected
    (tmp_path / "fss").mkdir()
    (tmp_path / "fss/test.txt").write_bytes(b"zebra\r\nant\r\n")
    episodes = draw(tmp_path, "fss1000", "--lists", tmp_path, "--shot", 3)
    numbers = [1, 10, *range(2, 10)]
    assert [row[:2] for row in episodes] == [[name, str(k)] for name in ("ant", "zebra") for k in numbers]
    assert all(row[1] not in row[2:] and len(row) == 5 for row in episodes)


@pytest.mark.parametrize("protocol", ["released", "seeded"])
def test_other_protocols_from_lists(protocol: str, tmp_path: Path) -> None:
    lines = [f"2007_{i:06}__{i % 5 + 6:02}" for i in range(30)]
    (tmp_path / "fold1.txt").write_text("\n".join(lines))
    (tmp_path / "val").mkdir()
    (tmp_path / "fold1.txt").rename(tmp_path / "val/fold1.txt")
    words = "--fold", 1, "--lists", tmp_path, "--protocol", protocol, "--shot", 5, "--count", 40
    episodes = draw(tmp_path, "pascal", *words)
    assert len(episodes) == 40 and all(len(set(row[1:])) == 6 for row in episodes)
    assert draw(tmp_path, "pascal", *words) == episodes != draw(tmp_path, "pascal", *words, "--seed", 1)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no list pascal5i_hsnet_val_fold0.txt or .*tools.prepare lists"):
        draw(tmp_path, "pascal", "--lists", tmp_path)
    with pytest.raises(UserError, match="test_fold: 3, but isaid5i has 3 folds"):
        draw(tmp_path, "isaid5i", "--fold", 3, "--lists", tmp_path)
    (tmp_path / "val").mkdir()
    for lines, message in (
        ("2007_000032\n", r"val/fold0.txt: '2007_000032' is neither"),
        ("a__1\nb__1\nc__2\nd__3\n", "class 2: 1 images, but its episodes need 2"),
        ("a__1\nb__1\nc__9\n", r"lists: JPEGImages/c.jpg is listed for class 9, not of \[1, 2, 3, 4, 5\]"),
    ):
        (tmp_path / "val/fold0.txt").write_text(lines)
        with pytest.raises(UserError, match=message):
            draw(tmp_path, "pascal", "--lists", tmp_path)
    (tmp_path / "fss1000_test.txt").write_text("ab\ncd\nab\n")
    with pytest.raises(UserError, match="fss1000_test.txt: ab is there twice"):
        draw(tmp_path, "fss1000", "--lists", tmp_path)
    (tmp_path / "coco/val").mkdir(parents=True)
    for content in (pickle.dumps(Path("x")), b"\x80", pickle.dumps([1]), b""):
        (tmp_path / "coco/val/fold0.pkl").write_bytes(content)
        with pytest.raises(UserError, match=r"fold0.pkl: not a (pickle of plain data|dict)"):
            draw(tmp_path, "coco", "--lists", tmp_path)
    assert not (tmp_path / "new").exists()

"""The generated data set: deterministic, fit for every fold, and not solved by what merely stands out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.benchmarks.table import open_benchmark
from dataset.demo import looks, write_demo
from dataset.episode import draw_episodes
from dataset.index import load_index
from util.config import Config

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_demo(root, images_per_class=12, size=96, seed=int(np.random.default_rng().integers(2**31)))
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_images_depend_on_the_arguments_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo(tmp_path / name, images_per_class=2, size=48, seed=seed)
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b") and len(first) == 2 * 40 + 3
    images = [name for name in first if name.startswith("JPEGImages")]
    assert all(first[name] != data for name, data in contents(tmp_path / "c").items() if name in images)


def test_classes_differ(demo_root: Path) -> None:
    found = list(looks().values())
    names = [look.name for look in found]
    assert len(set(names)) == 20
    for split in range(4):
        textures, shapes = zip(*(name.split() for name in names[5 * split : 5 * split + 5]), strict=True)
        assert len(set(textures)) == len(set(shapes)) == 5
    assert (demo_root / "classes.txt").read_text().splitlines() == [f"{i} {name}" for i, name in enumerate(names, 1)]


@pytest.mark.parametrize("split", range(4))
def test_every_fold_has_episodes_that_standing_out_does_not_solve(
    demo_root: Path, toy_config: MakeConfig, split: int
) -> None:
    cfg = toy_config(demo_root, num_classes=20, split=split, area_threshold=92)
    assert len(open_benchmark(cfg).names()) == 20
    train, _ = load_index(cfg, "train")
    index, files = load_index(cfg, "val")
    assert len(train.images) > 50 and min(map(len, train.by_class.values())) >= 2
    inter = union = 0
    for episode in draw_episodes(index, 1, 60):
        mask = np.array(Image.open(files[episode.query][1]))
        wanted, stands_out, counts = mask == episode.class_id, mask > 0, mask != 255
        assert 0.01 < wanted.mean() < 0.5
        inter, union = inter + (wanted & counts).sum(), union + (stands_out & counts).sum()
    assert inter / union < 0.7


def test_images_show_their_masks(demo_root: Path) -> None:
    """Objects are told from what is around them: the image changes more across their borders than elsewhere."""
    across, elsewhere = [], []
    for path in sorted((demo_root / "JPEGImages").iterdir())[:60]:
        image = np.array(Image.open(path).convert("L"), np.float32)
        mask = np.array(Image.open(demo_root / "SegmentationClassAug" / f"{path.stem}.png"))
        assert mask.shape == image.shape and min(mask.shape) > 80 and max(mask.shape) < 112
        border, change = mask[:, 1:-1] == 255, np.abs(image[:, 2:] - image[:, :-2])
        across.append(change[border].mean())
        elsewhere.append(change[mask[:, 1:-1] == 0].mean())
    assert np.mean(across) > 2 * np.mean(elsewhere)

"""Names of trained networks, and the one of the package on an image with an object."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from prediction.predictor import Predictor
from prediction.shared import open_shared
from prediction.zoo import HERE, entries
from util.errors import UserError


def test_every_name_has_its_config() -> None:
    names = entries()
    assert next(iter(names)) == "hmnet-lite"
    experiments = [f"hmnet-{data}-{fold}" for data in ("pascal", "coco") for fold in range(4)]
    backbones = [f"{backbone}-{shot}" for backbone in ("resnet50", "vgg") for shot in (1, 5)]
    assert {f"{first}-{last}" for first in experiments for last in backbones} <= names.keys()
    with pytest.raises(UserError, match="fetch them by `python -m tools.prepare weights --method bam`"):
        names["bam-coco-2-vgg-5"].open()
    with pytest.raises(UserError, match=r"hmnet-pascal-0-resnet50-1: its .*tools.prepare weights --download checkpoi"):
        Predictor.from_pretrained("hmnet-pascal-0-resnet50-1")
    with pytest.raises(UserError, match="no name that .*tools.zoo.* prints; nearest is hmnet-lite"):
        Predictor.from_pretrained("hmnet-light")
    for source in ("hmnet-lite", "user/net"):  # without fetching anything
        with pytest.raises(UserError, match=rf"--config c\.yaml: {source} has its own; leave it out"):
            open_shared(source, config=Path("c.yaml"))


def test_a_published_network_is_found_where_it_belongs(tmp_path: Path) -> None:
    entry = entries()["hmnet-pascal-3-vgg-5"]
    overrides = ["exp", str(tmp_path), "backbone", "tiny", "val_size", "65", "width", "16", "feature_size", "8"]
    with pytest.raises(UserError, match="are not there"):
        entry.open(overrides)
    folder = tmp_path / "pascal/HMNet/split3/tiny/snapshot"
    folder.mkdir(parents=True)
    (folder / "train5_epoch_80_0.7.pth").touch()
    cfg, path = open_shared("hmnet-pascal-3-vgg-5", overrides)
    assert (cfg.split, cfg.shot, cfg.width, path.name) == (3, 5, 16, "train5_epoch_80_0.7.pth")


def test_the_networks_of_the_package_are_small() -> None:
    files = list(HERE.glob("*/*.safetensors"))
    assert files and sum(path.stat().st_size for path in files) <= 3_000_000


@pytest.fixture(scope="module")
def lite() -> Predictor:
    return Predictor.from_pretrained("hmnet-lite", "cpu")


def flower(left: int, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A disc of one colour on noisy green, and its mask."""
    image = np.random.default_rng(left).normal((60, 140, 60), 12, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    cv2.circle(mask, (left, 150), 70, 1, -1)
    image[mask == 1] = colour
    return image, mask


def test_hmnet_lite_finds_what_it_is_shown(lite: Predictor) -> None:
    image, mask = flower(120, (230, 60, 60))
    lite.set_support([image], [mask])
    query, truth = flower(280, (220, 70, 60))
    found = lite.predict(query).mask == 1
    assert (found & (truth == 1)).sum() > 0.6 * (found | (truth == 1)).sum()

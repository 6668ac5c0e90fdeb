"""Raw data sets."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from tests.dataset.prepare.trees import Raw, make_coco, make_pascal


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"np.random.default_rng({seed})")
    return np.random.default_rng(seed)


@pytest.fixture
def raw_pascal(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Raw:
    """VOC and SBD archives in tmp_path/archives, passing for the official ones."""
    raw = make_pascal(tmp_path / "raw", tmp_path / "archives", rng)
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "md5", md5(raw.archives[0]))
    monkeypatch.setattr(SBDataset, "md5", md5(raw.archives[1]))
    return raw


@pytest.fixture
def raw_coco(tmp_path: Path, rng: np.random.Generator) -> Raw:
    """COCO archives in tmp_path/archives."""
    return make_coco(tmp_path / "raw", tmp_path / "archives", rng)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()

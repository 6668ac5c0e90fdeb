from pathlib import Path

import pytest

from prediction.predictor import Predictor
from tests.toy import toy_config, write_toy, write_weights
from util.config import Config


@pytest.fixture(scope="package")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A toy experiment and its random weights for 1 shot."""
    folder = tmp_path_factory.mktemp("predictor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_toy(folder / "toy")
        cfg = toy_config(folder)
        return cfg, write_weights(cfg)


@pytest.fixture
def predictor(experiment: tuple[Config, Path]) -> Predictor:
    return Predictor.from_checkpoint(*experiment, device="cpu")

from pathlib import Path

import pytest

from prediction.predictor import Predictor
from tests.toy import write_experiment
from util.config import Config


@pytest.fixture(scope="package")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A toy experiment and its random weights for 1 shot."""
    return write_experiment(tmp_path_factory.mktemp("predictor"))


@pytest.fixture
def predictor(experiment: tuple[Config, Path]) -> Predictor:
    return Predictor.from_checkpoint(*experiment, device="cpu")

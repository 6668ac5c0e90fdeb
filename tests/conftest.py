"""Fixtures for all tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.devices import GPU
from tests.server import Server, serve
from util.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def fresh_random_numbers() -> None:
    """Inputs differ from run to run; the seed, printed when a test fails, brings them back."""
    print(f"torch.manual_seed({torch.seed()})")


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU, and the machine's accelerator, where float32 is float32: without TF32."""
    if request.param == "cpu":
        return torch.device("cpu")
    if not torch.accelerator.is_available():
        pytest.skip("PyTorch sees no accelerator")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    return torch.device(torch.accelerator.current_accelerator().type, torch.accelerator.current_device_index())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the files in tmp_path/archives."""
    with serve(tmp_path / "archives") as running:
        yield running


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """`make_config(split=2, blocks=4)`: the defaults, of COCO-20i where data_set is coco, with these keys changed."""

    def make(**changes: object) -> Config:
        base = "coco" if changes.get("data_set") == "coco" else "pascal"
        words = [str(word) for pair in changes.items() for word in pair]
        return load_config(ROOT / "config" / "base" / f"{base}.yaml", words)

    return make

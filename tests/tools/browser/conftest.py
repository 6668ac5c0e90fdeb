import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch

from prediction.predictor import Predictor
from tests.engine.test_replay import write_result
from tests.tools.browser.tab import Tab
from tests.toy import ROOT, write_experiment
from util.config import Config

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A toy experiment with its config, and weights for 1 shot: random, but fixed, as a click needs good features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return write_experiment(tmp_path_factory.mktemp("browser"))


@pytest.fixture
def predictor(experiment: tuple[Config, Path]) -> Predictor:
    return Predictor.from_checkpoint(*experiment, device="cpu", cache_mb=100)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> str:
    """The address, once the page is served there."""
    while process.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return url
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the command ended before it served the page")


@pytest.fixture(scope="session")
def site(experiment: tuple[Config, Path]) -> Iterator[str]:
    """The command at work, with random weights; its limits are tight and its tests are two of the same network."""
    cfg, weights = experiment
    write_result(cfg.experiment_dir / "result_test_1shot.json", cfg, weights)
    write_result(cfg.experiment_dir / "again.json", cfg, weights)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = ["--weights", str(weights), "--port", str(port), "--results", cfg.exp, "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-m", "tools.app", *options, "--max-queries", "120"], cwd=ROOT) as process:
        yield wait_for(f"http://127.0.0.1:{port}", process)
        process.terminate()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any, site: str) -> Iterator[Tab]:
    """A tab of its own, in which nothing may go wrong and which asks nobody else for anything."""
    tab = Tab(chromium, site)
    yield tab
    assert not tab.elsewhere and not tab.errors
    tab.page.close()

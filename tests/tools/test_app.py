import os
import subprocess
import sys
from pathlib import Path

import pytest

from prediction.choice import USUAL
from prediction.joint import Joint
from tests.toy import ROOT, toy_config
from tools.app import METHODS, all_names, first_name, open_network, parse_arguments
from util.config import load_config
from util.errors import UserError


def test_nothing_trained_is_taken_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prediction.predictor.load_frozen_parts", lambda model, cfg: None)
    monkeypatch.setattr(sys, "argv", ["app", "--device", "cpu"])
    arguments = parse_arguments()
    assert first_name(arguments) == USUAL and {*all_names(USUAL)} >= {*METHODS}
    demo = load_config("config/demo.yaml").best_weights(1)
    demo.parent.mkdir(parents=True)
    demo.touch()
    assert first_name(arguments) == USUAL and all_names(USUAL)[-1] == str(demo)
    about = open_network(arguments, "adapt").about
    assert about.startswith("adapt, training-free; backbone timm/tf_efficientnet_lite2")
    monkeypatch.setattr(sys, "argv", ["app", "--weights", "mine.pth"])
    assert all_names(first_name(parse_arguments()))[0] == "mine.pth"


def test_a_network_of_the_zoo_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "--device", "cpu", "--arch", "prototype"])
    usual = open_network(parse_arguments(), USUAL)
    assert isinstance(usual.predictor.model, Joint) and usual.about.startswith("adapt and hmnet-lite, training-free; ")
    network = open_network(parse_arguments(), "hmnet-lite")
    assert network.source.weights is not None and network.predictor.model.is_trained
    assert network.about.startswith("hmnet-lite: HMNetLite, trained; backbone ")
    assert network.about.endswith("device cpu")


def test_a_training_free_method_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(toy_config(tmp_path).to_yaml())
    monkeypatch.setattr("prediction.predictor.load_frozen_parts", lambda model, cfg: None)  # initmodel/ may be empty
    for name, expected in (("prototype", "prototype, training-free; backbone tiny"), ("HMNet", None)):
        command = ["app", "--arch", name, "--config", str(path), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", command)
        if expected:
            network = open_network(parse_arguments(), name)
            assert network.source.cfg.arch == name and network.about.startswith(expected)
            assert not network.predictor.model.is_trained
        else:
            with pytest.raises(UserError, match="HMNet: is a trained method and needs weights"):
                open_network(parse_arguments(), name)


def test_without_gradio_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('gone', name='gradio')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "tools.app", "--weights", "absent.pth"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "gradio is not installed; pip install 'gradio>=6'" in done.stderr

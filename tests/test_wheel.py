"""What `pip install .` installs works away from this folder, and beside packages of the same names."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hmnet
from tests.toy import ROOT, draw_image, generator, toy_config, write_toy, write_weights

SCRIPT = """
import sys
from pathlib import Path
import hmnet.util.config, model
from hmnet import Predictor
from hmnet.util.config import load_config
assert Path(hmnet.__file__).is_relative_to(sys.argv[1]), hmnet.__file__
assert model.NAME == "somebody else's"
assert load_config("config/pascal/pascal_split0_resnet50_manet.yaml").num_classes == 20
assert load_config("config/base/coco.yaml").num_classes == 80
config, weights, image, mask = sys.argv[2:]
predictor = Predictor.from_checkpoint(config, weights, "cpu")
predictor.set_support([image], [mask])
print(predictor.predict(image).mask.shape)
"""


def test_every_command_is_named_with_what_it_does() -> None:
    rows = hmnet.overview().splitlines()
    for name in ("predict", "train", "test", "app", "prepare", "compare", "report", "benchmark"):
        assert [len(row) > 24 for row in rows if row.startswith(f"  {name} ")] == [True]


def test_a_command_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hmnet", "predictt"])
    assert hmnet.main() == 2
    assert capsys.readouterr().err == "hmnet: there is no command predictt; hmnet --help lists them\n"


@pytest.mark.slow
def test_the_wheel_predicts(tmp_path: Path) -> None:
    """In an empty environment, to which only what the project depends on is lent."""
    (tmp_path / "build.cfg").write_text(f"[build]\nbuild_base={tmp_path}/build\n[egg_info]\negg_base={tmp_path}\n")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheel", str(ROOT)]
    settings = {**os.environ, "DIST_EXTRA_CONFIG": str(tmp_path / "build.cfg")}
    subprocess.run(build, check=True, env=settings, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheel").iterdir()
    assert wheel.stat().st_size < 5e6
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0].partition("-")[0] for name in archive.namelist()} == {"hmnet"}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("*/site-packages")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"])
    (site / "model").mkdir()
    (site / "model/__init__.py").write_text('NAME = "somebody else\'s"\n')

    write_toy(tmp_path / "toy")
    cfg = toy_config(tmp_path)
    weights = write_weights(cfg)
    config = cfg.experiment_dir / "config.yaml"
    config.write_text(cfg.to_yaml())
    image, mask = draw_image(generator(), 40, 50, [3])
    (tmp_path / "support").mkdir()
    photo, label = tmp_path / "support/a.jpg", tmp_path / "support/a.png"
    Image.fromarray(image).save(photo)
    Image.fromarray((mask == 3).astype(np.uint8) * np.uint8(255)).save(label)

    def run(*words: object) -> str:
        done = subprocess.run([python, *map(str, words)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", SCRIPT, site, config, weights, photo, label).strip() == "(40, 50)"
    words = ["predict", "--weights", weights, "--support", photo.parent, "--query", photo, "--out", tmp_path / "out"]
    run(site / "bin/hmnet", *words)
    with Image.open(tmp_path / "out/masks/a.png") as found:
        assert found.size == (50, 40)
    tested = run("-m", "hmnet", "test", "--config", config, "--opts", "test_episodes", "2", "loader_workers", "0")
    assert "mIoU" in tested
    assert "usage: hmnet compare" in run("-m", "hmnet", "compare", "--help")
    for installed in (site / "hmnet").rglob("*.py"):  # a traceback's line is the line of the tree
        name = installed.relative_to(site / "hmnet")
        source = ROOT / ("hmnet.py" if name.name.startswith("__") and len(name.parts) == 1 else name)
        assert installed.read_text().count("\n") == source.read_text().count("\n")

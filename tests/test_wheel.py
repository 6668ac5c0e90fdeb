"""What `pip install .` installs works away from this folder."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.toy import ROOT, draw_image, generator, toy_config, write_toy, write_weights

SCRIPT = """
import sys
from pathlib import Path
import util.config
from prediction.predictor import Predictor
from util.config import load_config
assert Path(util.config.__file__).is_relative_to(sys.prefix), util.config.__file__
assert load_config(util.config.BASE_DIR / "coco.yaml").num_classes == 80
config, weights, image, mask = sys.argv[1:]
predictor = Predictor.from_checkpoint(config, weights, "cpu")
predictor.set_support([image], [mask])
print(predictor.predict(image).mask.shape)
"""


@pytest.mark.slow
def test_the_wheel_predicts(tmp_path: Path) -> None:
    """In an empty environment, to which only what the project depends on is lent."""
    (tmp_path / "build.cfg").write_text(f"[build]\nbuild_base={tmp_path}\n[egg_info]\negg_base={tmp_path}\n")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path / "wheel"), str(ROOT)]
    subprocess.run(build, check=True, env={**os.environ, "DIST_EXTRA_CONFIG": str(tmp_path / "build.cfg")})
    (wheel,) = (tmp_path / "wheel").iterdir()
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "venv/lib").glob("*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"])
    write_toy(tmp_path / "toy")
    cfg = toy_config(tmp_path)
    weights = write_weights(cfg)
    config = cfg.experiment_dir / "config.yaml"
    config.write_text(cfg.to_yaml())
    image, mask = draw_image(generator(), 40, 50, [3])
    (tmp_path / "support").mkdir()
    picture, label = tmp_path / "support/a.jpg", tmp_path / "support/a.png"
    Image.fromarray(image).save(picture)
    Image.fromarray((mask == 3).astype(np.uint8) * np.uint8(255)).save(label)
    done = subprocess.run(
        [python, "-c", SCRIPT, config, weights, picture, label], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(40, 50)"
    words = ["--weights", weights, "--support", picture.parent, "--query", picture, "--out", tmp_path / "out"]
    done = subprocess.run([python, "-m", "predict", *map(str, words)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out/masks/a.png") as found:
        assert found.size == (50, 40)

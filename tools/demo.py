"""The main job on a small scale: `python -m tools.demo` (or `make demo`).

Generates a data set, trains a base learner and HMNet on its base classes, and tests HMNet and the training-free methods
on the novel classes, all through the project's own entry points. What is done already is not done again. In the end
photographs are segmented by what two of them show: those that scikit-image brings, or the folders support/ and query/
of `--photos DIR` (`make demo PHOTOS=DIR`).
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset.demo import write_demo
from util.arguments import Parser
from util.config import load_config
from util.errors import UserError, run_main
from util.image import read_image
from util.visualize import save_image, save_index

CONFIG = "config/demo.yaml"
PANELS = 12
COINS_ROW = 151  # of the photograph of coins, below the upper two rows
COINS = 160, 14, 14, 34  # of Hough's circles: thresholds of edge and centre, smallest and largest radius in pixels
MOTORCYCLE = (  # clicked around it, in units of the left photograph's width
    *((0.13, 0.287), (0.197, 0.2), (0.317, 0.217), (0.45, 0.275), (0.5, 0.25), (0.642, 0.167), (0.675, 0.108)),
    *((0.733, 0.158), (0.783, 0.175), (0.758, 0.25), (0.717, 0.317), (0.767, 0.367), (0.867, 0.4), (0.917, 0.5)),
    *((0.908, 0.583), (0.842, 0.603), (0.75, 0.533), (0.708, 0.433), (0.65, 0.4), (0.583, 0.483), (0.45, 0.583)),
    *((0.333, 0.533), (0.267, 0.542), (0.183, 0.5), (0.158, 0.4), (0.167, 0.342)),
)
METHODS = {"prototype": "nearest prototype", "prior": "training-free prior", "HMNet": "HMNet"}


def main() -> None:
    """Run every step in turn and print the comparison."""
    parser = Parser(description="Train and test on a generated data set, and segment photographs.")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="with support/ and query/; default: scikit-image's")
    photos = parser.parse_args().photos
    cfg = load_config(CONFIG)
    if not Path(cfg.data_root, "ImageSets", "val.txt").is_file():
        write_demo(cfg.data_root)
    if not cfg.base_learner_path.is_file():
        step("Stage 1: the base learner", "train_base.py", "--opts", "resume", "auto")
    if not cfg.best_weights(cfg.shot).is_file():
        step("Stage 2: meta-training", "train.py", "--opts", "resume", "auto")
    results = {}
    for method in METHODS:
        options = ["--visualize", str(PANELS)] if method == cfg.arch else []
        path = cfg.experiment_dir / f"demo_{method.lower()}.json"
        step(f"Test on novel classes: {method}", "test.py", "--arch", method, "--result", str(path), *options)
        results[method] = json.loads(path.read_text())["aggregate"]
    print(comparison(results))
    print(f"\nsupport | query | truth | prediction: {cfg.experiment_dir / 'panels_test_1shot'}")
    segment_photographs(photos, cfg.experiment_dir / "photographs")


def segment_photographs(given: Path | None, folder: Path) -> None:
    """Segment photographs by what others show, without anything that was trained here."""
    photos = given or folder
    if not given and not write_photographs(folder):
        print("\nno photographs: pip install scikit-image brings some, or name a folder of yours by --photos DIR")
        return
    out = folder / "segmented"
    words = ["--support", photos / "support", "--query", photos / "query", "--out", out, "--html"]
    step("Photographs, by a method without training", "predict.py", *map(str, words), config=None)
    print(f"\nwhat was found: {out / 'index.html'}")


def write_photographs(folder: Path) -> bool:
    """Write two of scikit-image's photographs with masks, and four without; False where that package is missing."""
    spec = find_spec("skimage")
    if spec is None or spec.submodule_search_locations is None:
        return False
    data = Path(spec.submodule_search_locations[0], "data")
    names = ("coins", "motorcycle_left", "motorcycle_right", "chelsea", "coffee")
    coins, left, right, cat, coffee = (read_image(data / f"{name}.png") for name in names)
    top = coins[:COINS_ROW]
    circles: Any = cv2.HoughCircles(cv2.GaussianBlur(top[..., 0], (5, 5), 0), cv2.HOUGH_GRADIENT, 1, 40, None, *COINS)
    on_coins, on_left = np.zeros(top.shape[:2], np.uint8), np.zeros(left.shape[:2], np.uint8)
    for x, y, radius in circles[0].round().astype(int):
        cv2.circle(on_coins, (x, y), radius, 1, cv2.FILLED)
    cv2.fillPoly(on_left, [np.rint(np.array(MOTORCYCLE) * left.shape[1]).astype(np.int32)], 1)
    for name, image, mask in (("coin", top, on_coins), ("motorcycle", left, on_left)):
        save_image(folder / f"support/{name}/photo.jpg", image)
        save_index(folder / f"support/{name}/photo.png", mask)
    queries = {"coins": coins[COINS_ROW:], "motorcycle": right, "cat": cat, "coffee": coffee}
    for name, image in queries.items():
        save_image(folder / f"query/{name}.jpg", image)
    return True


def step(title: str, script: str, *arguments: str, config: str | None = CONFIG) -> None:
    """Run an entry point as a user would; UserError if it fails."""
    print(f"\n== {title}", flush=True)
    named = ["--config", config] if config else []
    code = subprocess.run([sys.executable, "-m", "hmnet", Path(script).stem, *named, *arguments]).returncode
    if code:
        raise UserError(f"{script} stopped with exit code {code}; its last lines say why")


def comparison(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table of all methods."""
    lines = ["", "novel classes, 1 shot    mIoU   FB-IoU"]
    for method, name in METHODS.items():
        figures = results[method]
        lines.append(f"{name:<22}{100 * figures['miou']['mean']:7.1f}{100 * figures['fb_iou']['mean']:9.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)

"""The main job on a small scale: `python -m tools.demo` (or `make demo`).

Generates a data set, trains a base learner and HMNet on its base classes, and tests HMNet and the training-free methods
on the novel classes, all through the project's own entry points. What is done already is not done again.
"""

import json
import subprocess
import sys
from pathlib import Path

from dataset.demo import write_demo
from util.arguments import Parser
from util.config import load_config
from util.errors import UserError, run_main

CONFIG = "config/demo.yaml"
PANELS = 12
METHODS = {"prototype": "nearest prototype", "prior": "training-free prior", "HMNet": "HMNet"}


def main() -> None:
    """Run every step in turn and print the comparison."""
    Parser(description="Train and test on a generated data set.").parse_args()
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
        path = cfg.experiment_dir / f"demo_{method}.json"
        step(f"Test on novel classes: {method}", "test.py", "--arch", method, "--result", str(path), *options)
        results[method] = json.loads(path.read_text())["aggregate"]
    print(comparison(results))
    print(f"\nsupport | query | truth | prediction: {cfg.experiment_dir / 'panels_test_1shot'}")


def step(title: str, script: str, *arguments: str, config: str = CONFIG) -> None:
    """Run an entry point as a user would; UserError if it fails."""
    print(f"\n== {title}", flush=True)
    code = subprocess.run([sys.executable, "-m", "hmnet", Path(script).stem, "--config", config, *arguments]).returncode
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

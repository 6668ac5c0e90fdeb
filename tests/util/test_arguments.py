import subprocess
import sys

import pytest

from model.build import build_model
from tests.toy import ROOT
from util.arguments import evaluation_arguments, experiment_config, training_arguments
from util.config import load_config
from util.errors import UserError

CONFIG = "config/coco/coco_split1_resnet50_manet.yaml"


@pytest.mark.parametrize("launcher", [[], ["--local_rank", "1"], ["--local-rank=1"]])
def test_arguments_of_scripts_written_for_bam(launcher: list[str]) -> None:
    given = training_arguments("", [*launcher, f"--config={CONFIG}", "--arch=HMNet", "--viz"])
    assert given.viz and experiment_config(given) == load_config(CONFIG, ["arch", "HMNet"]) != load_config(CONFIG)
    assert evaluation_arguments([*launcher, f"--config={CONFIG}", "--viz"]).visualize > 0


def test_overrides_come_after_the_architecture() -> None:
    given = training_arguments("", ["--config", CONFIG, "--arch", "HMNet", "--opts", "shot", "5", "amp", "bf16"])
    cfg = experiment_config(given)
    assert not given.viz and (cfg.arch, cfg.shot, cfg.amp) == ("HMNet", 5, "bf16")
    assert experiment_config(training_arguments("", ["--config", CONFIG])) == load_config(CONFIG)


def test_another_method_and_its_former_flag() -> None:
    for flag in ("--arch", "--method"):
        assert experiment_config(evaluation_arguments(["--config", CONFIG, flag, "prototype"])).arch == "prototype"
    with pytest.raises(UserError, match="arch: 'HMnet' is no method; nearest is 'HMNet'"):
        build_model(experiment_config(training_arguments("", ["--config", CONFIG, "--arch", "HMnet"])))


@pytest.mark.parametrize("script", ["train.py", "train_base.py", "test.py", "predict.py"])
def test_help_imports_no_heavy_package(script: str) -> None:
    program = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {script}")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "util.errors" in imported and not imported & {"torch", "cv2", "numpy"}

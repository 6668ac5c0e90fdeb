import pytest

from util.arguments import training_arguments
from util.config import load_config
from util.errors import UserError

CONFIG = "config/coco/coco_split1_resnet50_manet.yaml"


@pytest.mark.parametrize("launcher", [[], ["--local_rank", "1"], ["--local-rank=1"]])
def test_arguments_of_scripts_written_for_bam(launcher: list[str]) -> None:
    cfg, viz = training_arguments("", [*launcher, f"--config={CONFIG}", "--arch=HMNet", "--viz"])
    assert viz and cfg == load_config(CONFIG, ["arch", "HMNet"]) != load_config(CONFIG)


def test_overrides_come_after_the_architecture() -> None:
    cfg, viz = training_arguments("", ["--config", CONFIG, "--arch", "HMNet", "--opts", "shot", "5", "amp", "bf16"])
    assert not viz and (cfg.arch, cfg.shot, cfg.amp) == ("HMNet", 5, "bf16")
    assert training_arguments("", ["--config", CONFIG])[0] == load_config(CONFIG)


def test_another_architecture() -> None:
    with pytest.raises(UserError, match="arch: 'PFENet' should be 'HMNet' or 'HMNetAMP'"):
        training_arguments("", ["--config", CONFIG, "--arch", "PFENet"])

"""Networks from configurations: which blocks, with which options, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.build import build_base_learner, build_model
from model.parts.fusion import build_trunk, hybrid_block
from util.config import Config, load_config
from util.errors import UserError

MakeConfig = Callable[..., Config]
ROOT = Path(__file__).parents[2]
TINY = {"backbone": "tiny", "width": 16, "blocks": 4, "feature_size": 8, "state_size": 4, "scan": "reference"}


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ({}, "SelfBlock HybridBlock SelfBlock HybridBlock"),
        ({"blocks": 3}, "SelfBlock HybridBlock SelfBlock"),
        ({"self_blocks": False}, "HybridBlock HybridBlock HybridBlock HybridBlock"),
        ({"srm": "none", "qim": "none"}, "SelfBlock SelfBlock SelfBlock SelfBlock"),
        ({"srm": "none", "qim": "none", "self_blocks": False}, ""),
        ({"fusion": "concat"}, ""),
        ({"fusion": "mlp", "blocks": 2}, "MlpBlock MlpBlock"),
        ({"fusion": "cross_attention", "blocks": 3}, "SelfAttentionBlock CrossAttentionBlock SelfAttentionBlock"),
        ({"fusion": "self_calibrated", "blocks": 2}, "SelfAttentionBlock SelfCalibratedBlock"),
    ],
)
def test_the_blocks_that_keys_name(make_config: MakeConfig, keys: dict[str, Any], kinds: str) -> None:
    trunk = build_trunk(make_config(**TINY | keys))
    assert [type(block).__name__ for block in trunk.blocks] == kinds.split()


def test_options_of_a_block_are_the_keys_of_their_names(make_config: MakeConfig) -> None:
    keys = {"patch_ratio": 2, "srm": "basic", "qim": "basic", "qim_skip": "channel", "qim_state_grad": True}
    block = hybrid_block(make_config(**TINY, **keys))
    assert {key: getattr(block, key) for key in keys} == keys
    assert (block.ln_1.normalized_shape, block.scan.state_size, block.scan.backend) == ((16,), 4, "reference")


@pytest.mark.parametrize("key", ["train_h", "val_size"])
def test_sizes_that_a_backbone_does_not_take_are_refused(make_config: MakeConfig, key: str) -> None:
    cfg = make_config(**TINY).model_copy(update={key: 100})
    with pytest.raises(UserError, match=f"{key}: 100 should be a multiple of 8 plus 1, such as 97 or 105, for"):
        build_model(cfg, pretrained=False)


def test_the_switch_of_the_first_dilations_reaches_both_stages(make_config: MakeConfig) -> None:
    for dilate_first, expected in ((True, [2, 4]), (False, [1, 2])):
        cfg = make_config(**TINY, dilate_first=dilate_first)
        for network in (build_model(cfg, pretrained=False), build_base_learner(cfg, pretrained=False)):
            convs = dict(network.backbone.named_modules())
            assert [convs[f"layer{stage}.0.conv2"].dilation[0] for stage in (3, 4)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "config" / "timm").glob("*.yaml")), ids=lambda file: file.stem)
def test_experiments_with_encoders_of_timm_build(file: Path) -> None:
    cfg = load_config(file)
    assert build_model(cfg, pretrained=False).is_trained
    assert build_base_learner(cfg, pretrained=False).backbone.frozen

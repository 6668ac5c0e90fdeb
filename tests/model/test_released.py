"""Names in checkpoints, mismatches, and contents that are no weights."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.backbone import create_backbone
from model.build import build_base_learner, build_model
from model.released import load_backbone, load_base_learner, load_weights, released_state_dict
from tests.toy import torchvision_vgg
from util.checkpoint import save_checkpoint
from util.config import Config, load_config
from util.errors import UserError


@pytest.fixture(scope="module")
def cfg() -> Config:
    sizes = ["backbone", "tiny", "width", "16", "blocks", "2", "feature_size", "8"]
    return load_config("config/pascal/pascal_split0_resnet50_manet.yaml", sizes)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("names", ["own", "released"])
def test_own_and_released_names_load(cfg: Config, tmp_path: Path, prefix: str, names: str) -> None:
    source, target = build_model(cfg, pretrained=False), build_model(cfg, pretrained=False)
    state = source.state_dict() if names == "own" else released_state_dict(source)
    save_checkpoint(
        tmp_path / "w.pth", {"epoch": 3, "state_dict": {prefix + key: value for key, value in state.items()}}
    )
    load_weights(target, tmp_path / "w.pth")
    assert_same(target.state_dict(), source.state_dict())


def test_snapshots_written_under_former_names_load(cfg: Config) -> None:
    source, target = build_model(cfg, pretrained=False), build_model(cfg, pretrained=False)
    state = source.state_dict()
    former = {"ensemble.": "merging."}
    for now, before in former.items():
        state = {before + key.removeprefix(now) if key.startswith(now) else key: x for key, x in state.items()}
    assert "merging.gram_merge.weight" in state
    load_weights(target, state)
    assert_same(target.state_dict(), source.state_dict())


def test_base_learner_checkpoint_fills_only_the_frozen_parts(cfg: Config) -> None:
    base, model = build_base_learner(cfg, pretrained=False), build_model(cfg, pretrained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = released_state_dict(base)
    assert {"cls.0.weight", "cls.4.bias", "layer4.0.conv1.weight"} <= state.keys()
    state |= {f"encoder.{key}": value for key, value in state.items() if key.startswith("layer")}
    load_base_learner(model, state)
    for key, value in model.state_dict().items():
        frozen = key.startswith(("backbone.", "base_learner."))
        twin = base.state_dict()[key.replace("base_learner.", "head.")] if frozen else before[key]
        assert torch.equal(value, twin), key
    load_weights(base, state)


@torch.inference_mode()
def test_torchvision_vgg_fills_the_stages() -> None:
    theirs = torchvision_vgg()
    backbone = create_backbone("vgg").eval()
    load_backbone(backbone, {key: value.half() for key, value in theirs.state_dict().items()})
    images = torch.randn(1, 3, 32, 32)
    found = backbone(images, ["layer2"])["layer2"]
    torch.testing.assert_close(found, theirs.features[:24](images), atol=1e-2, rtol=1e-2)


def test_a_mismatch_lists_every_kind_and_changes_nothing(cfg: Config) -> None:
    model = build_model(cfg, pretrained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value + 1 for key, value in released_state_dict(model).items()}
    del state["mamba.norm.weight"]
    state["stranger.weight"] = torch.zeros(1)
    state["gram_merge.weight"] = torch.zeros(3)
    with pytest.raises(UserError) as raised:
        load_weights(model, state)
    message = str(raised.value)
    assert "missing: mamba.norm.weight" in message
    assert "unexpected: stranger.weight" in message
    assert "misshapen: gram_merge.weight (3,) instead of (1, 2, 1, 1)" in message
    assert "\n" not in message
    assert_same(model.state_dict(), before)


ODD = {
    "list": [1, 2],
    "nothing": None,
    "empty": {},
    "tensor": torch.zeros(2),
    "number as name": {0: torch.zeros(3)},
    "text": {"cls.0.weight": "weights"},
    "nested": {"cls.0.weight": {"weight": torch.zeros(3)}},
    "sparse": {"cls.0.weight": torch.zeros(3, 3).to_sparse()},
    "quantised": "quantised",  # made where its warning is silenced
    "complex": {"cls.0.weight": torch.zeros(3, dtype=torch.complex64)},
    "without data": {"cls.0.weight": torch.zeros(3, device="meta")},
    "no numbers": {"cls.0.weight": torch.zeros(0, 7)},
    "line break in a name": {"cls\n.0.weight": torch.zeros(1)},
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_odd_contents_are_one_line_and_change_nothing(cfg: Config, tmp_path: Path, kind: str, inside: bool) -> None:
    model, path = build_model(cfg, pretrained=False), tmp_path / "odd.pth"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantised tensors
        odd = ODD[kind]
        if kind == "quantised":
            odd = {"cls.0.weight": torch._empty_affine_quantized([3], scale=1.0, zero_point=0, dtype=torch.qint8)}
        torch.save({"state_dict": odd} if inside else odd, path)
        for load in (load_weights, load_base_learner, lambda model, path: load_backbone(model.backbone, path)):
            with pytest.raises(UserError, match=r"odd\.pth: ") as refused:
                load(model, path)
            assert "\n" not in str(refused.value)
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value / 0, "holds NaN or infinity; take an earlier checkpoint"),
        (lambda value: value * float("nan"), "holds NaN or infinity"),
        (lambda value: (99 * value).to(torch.int8), "holds torch.int8, not weights"),
    ],
)
def test_weights_without_finite_numbers_are_refused(
    cfg: Config, change: Callable[[Tensor], Tensor], problem: str
) -> None:
    model = build_model(cfg, pretrained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    name = "cls_meta.0.weight"
    state = released_state_dict(model)
    with pytest.raises(UserError, match=f"{re.escape(name)} {problem}"):
        load_weights(model, {**state, name: change(state[name])})
    assert_same(model.state_dict(), before)


def test_missing_files_say_what_is_expected_where(cfg: Config, tmp_path: Path) -> None:
    elsewhere = cfg.model_copy(update={"initmodel": str(tmp_path)})
    with pytest.raises(UserError, match=r"PSPNet/pascal/split0/tiny/best\.pth: base learner weights are missing"):
        build_model(elsewhere)
    with pytest.raises(UserError, match="no ImageNet weights"):
        build_model(elsewhere.model_copy(update={"ensemble": False}))

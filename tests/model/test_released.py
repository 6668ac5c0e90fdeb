"""Checkpoint files: names, mismatches, and files that are not what they should be."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import vgg16_bn

from model.backbone import build_backbone
from model.build import build_base_learner, build_model
from model.hmnet import HMNet
from model.released import load_backbone, load_base_learner, load_weights, released_state_dict
from util.checkpoint import read_checkpoint, save_checkpoint
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


@pytest.mark.parametrize("prefix", ["", "module."])
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
    former = {"embedding.": "embed.", "merging.": "ensemble."}
    for now, before in former.items():
        state = {before + key.removeprefix(now) if key.startswith(now) else key: x for key, x in state.items()}
    assert {"embed.query.0.weight", "ensemble.gram_merge.weight"} <= state.keys()
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
    theirs = vgg16_bn(weights=None).eval()
    backbone = build_backbone("vgg").eval()
    load_backbone(backbone, {key: value.half() for key, value in theirs.state_dict().items()})
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(backbone(images)[0], theirs.features[:24](images), atol=1e-2, rtol=1e-2)


def test_a_mismatch_lists_every_kind_and_changes_nothing(cfg: Config) -> None:
    model: HMNet = build_model(cfg, pretrained=False)
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


class Burglar:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    if zipped:
        torch.save({"state_dict": Burglar(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Burglar(trace)}))
    with pytest.raises(UserError, match=r"evil\.pth: not a plain tensor archive") as refused:
        read_checkpoint(path)
    assert ("it calls posix.mkdir" if zipped else "it is no pickle of tensors") in str(refused.value)
    assert not trace.exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert trace.exists(), "the file does run code where it is let"


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": {"a": torch.randn(1000)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(UserError, match="cut.pth"):
        read_checkpoint(path)


def test_a_missing_file_and_a_bare_tensor_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.pth: no such checkpoint"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="expected a dictionary"):
        read_checkpoint(tmp_path / "tensor.pth")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save_checkpoint(path, {"a": torch.ones(2)})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"a": lambda: None})
    assert os.listdir(tmp_path) == ["w.pth"]
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))


def test_missing_files_say_what_is_expected_where(cfg: Config, tmp_path: Path) -> None:
    elsewhere = cfg.model_copy(update={"initmodel": str(tmp_path)})
    with pytest.raises(UserError, match=r"PSPNet/pascal/split0/tiny/best\.pth: base learner weights are missing"):
        build_model(elsewhere)
    with pytest.raises(UserError, match="no ImageNet weights"):
        build_model(elsewhere.model_copy(update={"ensemble": False}))

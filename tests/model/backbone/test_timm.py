"""Encoders of timm: maps, sizes, weights and checkpoints; random weights stand in for what would be downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from model.backbone.timm import TimmBackbone
from model.build import build_base_learner, build_model
from model.inference import prepare_inference
from model.loss import episode_loss
from model.released import load_base_learner, load_weights, released_state_dict
from util.config import Config
from util.errors import UserError

MakeConfig = Callable[..., Config]
CONVNET, VIT, WITH_OWN_MEAN = "test_efficientnet", "test_vit", "tf_efficientnet_lite0"
SMALL = {"width": 16, "blocks": 2, "feature_size": 8, "state_size": 4, "scan": "reference", "device": "cpu"}


def write_weights(folder: Path, name: str) -> nn.Module:
    """Random weights of a whole model, classifier included, in half precision where `fetch` looks for them."""
    model = timm.create_model(name)
    (folder / "timm").mkdir(parents=True, exist_ok=True)
    torch.save({key: x.half() if x.is_floating_point() else x for key, x in model.state_dict().items()},
               folder / "timm" / f"{name}.pth")  # fmt: skip
    return model


def small(make_config: MakeConfig, folder: Path, name: str, **keys: object) -> Config:
    size = 64 if name == VIT else 65
    sizes = {"train_h": size, "train_w": size, "val_size": size, "base_train_h": size}
    return make_config(backbone=f"timm/{name}", initmodel=folder, **SMALL, **sizes, **keys)


def episode(size: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 3, size, size), torch.randn(2, 1, 3, size, size), torch.randint(0, 2, (2, 1, size, size))


@torch.inference_mode()
def test_a_convnet_sees_what_timm_sees_of_its_own_normalisation(tmp_path: Path) -> None:
    whole = write_weights(tmp_path, WITH_OWN_MEAN)
    backbone = TimmBackbone(WITH_OWN_MEAN, None, tmp_path / "timm" / f"{WITH_OWN_MEAN}.pth").eval()
    backbone.load_pretrained()
    theirs = timm.create_model(WITH_OWN_MEAN, features_only=True, output_stride=8, out_indices=(2, 3, 4)).eval()
    theirs.load_state_dict({key: x.half().float() for key, x in whole.state_dict().items()}, strict=False)
    pixels = torch.rand(1, 3, 65, 65)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    own: Any = theirs.pretrained_cfg
    expected = theirs((pixels - torch.tensor(own["mean"])[:, None, None]) / torch.tensor(own["std"])[:, None, None])
    found, channels_of = backbone((pixels - mean) / std, backbone.levels), backbone.channels(backbone.levels)
    for actual, wanted, channels in zip(found.values(), expected, channels_of, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-3)
        assert actual.shape == (1, channels, 9, 9)


@torch.inference_mode()
def test_two_of_the_three_maps_may_be_the_same() -> None:
    backbone = TimmBackbone(CONVNET, [2, 3, 3], Path("none")).eval()
    assert backbone.levels == (backbone.maps[2].name, backbone.maps[3].name, backbone.maps[3].name)
    f2, f3 = backbone(torch.rand(1, 3, 65, 65), backbone.levels).values()
    assert f2.shape != f3.shape and backbone.channels(backbone.levels) == (f2.shape[1], *[f3.shape[1]] * 2)


@torch.inference_mode()
def test_all_maps_are_named_and_can_be_asked_for() -> None:
    for name in (CONVNET, VIT):
        backbone = TimmBackbone(name, None, Path("none")).eval()
        found = backbone(torch.rand(1, 3, 64, 64), [info.name for info in reversed(backbone.maps)])
        assert len(found) == len(backbone.maps) > 3
        for info in backbone.maps:
            assert found[info.name].shape == (1, info.channels, *[-(-64 // info.stride)] * 2)


@pytest.mark.parametrize("name", [CONVNET, "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
@torch.inference_mode()
def test_the_last_stage_alone_goes_on_from_the_one_before(name: str) -> None:
    backbone = TimmBackbone(name, None, Path("none"), output_stride=32).eval()
    f3, f4 = list(backbone(torch.rand(1, 3, 64, 64), backbone.levels).values())[-2:]
    stage = backbone.last_stage()
    assert stage is not None and f3.shape != f4.shape
    torch.testing.assert_close(stage(f3), f4)


def test_a_last_stage_that_timm_does_not_show_is_none() -> None:
    assert TimmBackbone(VIT, None, Path("none")).last_stage() is None
    assert TimmBackbone(CONVNET, [4], Path("none")).last_stage() is None


def test_weights_come_from_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a checkpoint that was trained on the same weights in half precision is taken."""
    name, missing = "tf_efficientnet_lite2", tmp_path / "none.pth"
    backbone = TimmBackbone(name, None, missing, frozen=True)
    backbone.load_pretrained()
    half = TimmBackbone(name, None, missing, frozen=True)
    half.load_state_dict({key: x.half().float() for key, x in backbone.state_dict().items()})
    assert torch.equal(half.digest(), backbone.digest()) and not torch.equal(half.digest(True), backbone.digest(True))
    assert backbone.digest().tolist()[:4] == [184, 225, 195, 125]
    monkeypatch.setattr("model.backbone.packages.SHA256", "other")
    with pytest.raises(UserError, match="efficientnet-lite2-9656183e.pth: is not the published file; install"):
        TimmBackbone(name, None, missing).load_pretrained()


def test_a_frozen_model_is_a_plain_module() -> None:
    backbone, other = (TimmBackbone(CONVNET, None, Path("none"), frozen=True) for _ in range(2))
    assert {key.removeprefix("net.") for key in backbone.state_dict()} == set(backbone.net.state_dict())
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other.digest(), backbone.digest())


@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize(("name", "freeze"), [(CONVNET, False), (CONVNET, True), (VIT, "")])
def test_stage_one_stage_two_and_loading_again(
    make_config: MakeConfig, tmp_path: Path, name: str, freeze: object, ensemble: bool
) -> None:
    write_weights(tmp_path, name)
    cfg = small(make_config, tmp_path, name, ensemble=ensemble, base_freeze_backbone=freeze)
    frozen = freeze is not False or not ensemble
    if ensemble:
        base = build_base_learner(cfg).train()
        base(torch.randn(2, 3, cfg.train_h, cfg.train_h)).square().mean().backward()
        assert any(p.grad is not None for p in base.backbone.parameters()) != frozen
        assert any(module.training for module in base.backbone.modules()) != frozen
        cfg.base_learner_path.parent.mkdir(parents=True)
        torch.save({"state_dict": released_state_dict(base)}, cfg.base_learner_path)
    model = build_model(cfg).train()
    scores = model(*episode(cfg.train_h), episode_class=torch.tensor([0, 1]) if ensemble else None)
    torch.stack([*episode_loss(scores, torch.randint(0, 2, (2, cfg.train_h, cfg.train_h))).values()]).sum().backward()
    assert not any(p.requires_grad for p in model.backbone.parameters())

    state = released_state_dict(model)
    kept = [key for key in state if key.startswith("backbone.")]
    assert (kept == [f"backbone.{name}.sha256"]) == frozen
    again = build_model(cfg, pretrained=False)
    load_weights(again, state)
    inputs = episode(cfg.val_size)
    with torch.inference_mode():
        expected = model.eval()(*inputs)
        torch.testing.assert_close(again.eval()(*inputs), expected)
        folded = prepare_inference(again)
        torch.testing.assert_close(folded(*inputs), expected, atol=1e-3, rtol=1e-3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())

    if frozen:
        write_weights(tmp_path, name)
        with pytest.raises(UserError, match=f"other weights of backbone.{name}.*SHA-256"):
            load_weights(build_model(cfg, pretrained=False), state)


def test_damaged_foreign_and_missing_files_are_one_line(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small(make_config, tmp_path, CONVNET, ensemble=False)
    path = tmp_path / "timm" / f"{CONVNET}.pth"
    write_weights(tmp_path, CONVNET)
    content = torch.load(path)
    for change, message in (
        ({"conv_stem.weight": torch.zeros(3)}, "does not fit timm/"),
        ({"conv_stem.weight": None}, "does not fit timm/|lacks|tensor"),
    ):
        torch.save(content | change, path)
        with pytest.raises(UserError, match=rf"{CONVNET}\.pth: .*({message})") as refused:
            build_model(cfg)
        assert "\n" not in str(refused.value)
    torch.save({key: x for key, x in content.items() if not key.startswith("blocks.3")}, path)
    with pytest.raises(UserError, match=rf"{CONVNET}\.pth: is no weight file of timm/{CONVNET}: lacks blocks\.3"):
        build_model(cfg)
    path.unlink()

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("model.backbone.timm.get_hf_file_metadata", offline)
    with pytest.raises(UserError, match=rf"timm/{CONVNET}\.safetensors: is not there.*no route") as refused:
        build_model(cfg)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backbone": "timm/resnet5"}, "no model 'resnet5'; nearest is 'timm/resnet50'"),
        ({"backbone": "timm/dinov2"}, "no model 'dinov2'; nearest is 'timm/vit_.*_dinov2"),
        ({"backbone": f"timm/{VIT}", "val_size": 65}, "val_size: 65 should be a multiple of 16, such as 64 or 80, for"),
        ({"backbone": f"timm/{CONVNET}"}, "train_h: 64 should be a multiple of 8 plus 1, such as 57 or 65, for"),
        ({"backbone": "timm/test_efficientnet.foo_in1k"}, "timm/test_efficientnet.foo_in1k gives no .*tag"),
        ({"backbone": "timm/hiera_tiny_224"}, "train_h: 64 should be 224 for backbone timm/hiera_tiny_224"),
        ({"backbone": f"timm/{VIT}", "backbone_layers": [1, 3, 6]}, r"backbone_layers: .* of 0 \.\.\. 5"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(make_config: MakeConfig, keys: dict[str, object], message: str) -> None:
    sizes = {"train_h": 64, "train_w": 64, "val_size": 64, "base_train_h": 64}
    with pytest.raises(UserError, match=message):
        build_model(make_config(**SMALL | sizes | keys), pretrained=False)


def test_models_that_refuse_options_are_taken_without() -> None:
    backbone = TimmBackbone("vgg11_bn", None, Path())  # has no output_stride, and says so by an assertion
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 96, 96), backbone.levels)
    assert [tuple(found.shape[1:]) for found in maps.values()] == [(512, 12, 12), (512, 6, 6), (512, 3, 3)]


def test_the_maps_are_those_that_the_key_names(make_config: MakeConfig) -> None:
    images = torch.randn(1, 3, 64, 64)
    for layers in (None, (0, 2, 3)):
        backbone = TimmBackbone(VIT, layers, Path()).eval()
        net = backbone.net.model
        blocks = [2, 3, 5] if layers is None else layers
        with torch.inference_mode():
            x = net.forward_intermediates(images * backbone.scale + backbone.shift, indices=list(blocks), norm=True)[1]
            for actual, expected in zip(backbone(images, backbone.levels).values(), x, strict=True):
                torch.testing.assert_close(actual, expected)


def test_a_base_learner_of_a_frozen_encoder_holds_the_head_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    write_weights(tmp_path, VIT)
    cfg = small(make_config, tmp_path, VIT)
    state = released_state_dict(build_base_learner(cfg))
    assert {key.split(".")[0] for key in state} == {"backbone", "ppm", "cls"}
    load_base_learner(build_model(cfg, pretrained=False), state)

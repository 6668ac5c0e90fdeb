"""Every family of encoders once, with random weights: shapes, gradients, steps that lower the loss, and costs.

`pytest -m slow -s tests/model/backbone/test_families.py` prints a table.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.build import build_model
from model.loss import episode_loss
from tools.benchmark import in_fresh_process, parameter_count, peak_memory
from util.config import load_config

ROOT = Path(__file__).parents[3]
FAMILIES = {  # the side of its images
    "vit_small_patch14_dinov2.lvd142m": 224,
    "vit_small_patch16_dinov3.lvd1689m": 224,
    "sam2_hiera_tiny.fb_r896": 224,
    "swin_base_patch4_window7_224": 224,
    "convnext_tiny": 224,
    "resnet50": 225,
    "tf_efficientnet_lite2": 225,
}


def try_out(name: str, size: int) -> dict[str, Any]:
    """Three steps on one episode without dropout; to be called in a process of its own."""
    sides = [word for key in ("train_h", "train_w", "val_size", "base_train_h") for word in (key, str(size))]
    cfg = load_config(ROOT / "config/base/pascal.yaml", ["backbone", f"timm/{name}", *sides])
    model = build_model(cfg, pretrained=False).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    images = torch.randn(1, 3, size, size), torch.randn(1, 1, 3, size, size), torch.ones(1, 1, size, size)
    target, learnable = torch.zeros(1, size, size).long(), [p for p in model.parameters() if p.requires_grad]
    images[2][..., size // 2 :] = target[:, : size // 3] = 1
    optimizer, losses, seconds = torch.optim.AdamW(learnable, 1e-4), [], []
    for _ in range(3):
        start = time.perf_counter()
        scores = model(*images, episode_class=torch.tensor([1]))
        loss = torch.stack([*episode_loss(scores, target).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    training_peak = peak_memory()
    model.eval()
    with torch.inference_mode():
        found = model.backbone(images[0], model.maps)
        start = time.perf_counter()
        model(*images)
    return {
        "maps": [tuple(x.shape[1:]) for x in found.values()],
        "channels": model.backbone.channels([*found]),
        "scores": [tuple(x.shape) for x in (scores.meta, scores.final)],
        "losses": losses,
        "encoder M": parameter_count(model.backbone) / 1e6,
        "learnable M": parameter_count(model, learnable=True) / 1e6,
        "step s": min(seconds),
        "episode s": time.perf_counter() - start,
        "peak MB": training_peak / 2**20,
        "gradients in encoder": sum(p.grad is not None for p in model.backbone.parameters()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learns(name: str) -> None:
    size = FAMILIES[name]
    found = in_fresh_process(try_out, name, size)
    figures = " | ".join(f"{found[key]:.2f}" for key in ("encoder M", "learnable M", "step s", "episode s", "peak MB"))
    print(
        f"\n| {name} | {size} | {found['maps']} | {figures} | {found['losses'][0]:.3f} -> {found['losses'][-1]:.3f} |"
    )
    assert found["scores"] == [(1, 2, size, size)] * 2
    assert [channels for channels, *_ in found["maps"]] == list(found["channels"])
    assert found["losses"][0] > found["losses"][1] > found["losses"][2]
    assert found["gradients in encoder"] == 0

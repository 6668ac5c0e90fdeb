"""A data set of coloured shapes, small enough to be made by every test, and configs of networks that fit it."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from dataset.dataset import EvaluationEpisodes
from engine.evaluation import make_episodes
from model.build import build_base_learner, build_model
from model.methods.hmnet import HMNet
from model.released import checkpoint_state
from util.checkpoint import save_checkpoint
from util.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
COLORS = [(220, 40, 40), (40, 200, 60), (60, 60, 230), (230, 220, 50), (200, 60, 210), (60, 210, 220), (240, 140, 30)]
CLASSES = [*COLORS, (240, 240, 240)]
NETWORK = {
    **{"backbone": "tiny", "train_h": 33, "train_w": 33, "val_size": 33, "base_train_h": 33},
    **{"feature_size": 8, "width": 16, "blocks": 2, "state_size": 4, "device": "cpu", "loader_workers": 0},
}


def generator() -> np.random.Generator:
    """Others at every call, and brought back by the seed that a failing test prints."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def draw_image(rng: np.random.Generator, height: int, width: int, classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image (h, w, 3) of one ellipse of each class and its mask (h, w) with a few ignored pixels."""
    image = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for number, class_id in enumerate(classes):
        center = round(width * (number + 0.5) / len(classes)), round(height * rng.uniform(0.35, 0.65))
        axes = round(width / len(classes) * rng.uniform(0.25, 0.45)), round(height * rng.uniform(0.2, 0.35))
        shape = np.zeros_like(mask)
        cv2.ellipse(shape, center, axes, rng.uniform(0, 180), 0, 360, 1, -1)
        mask[shape == 1] = class_id
        image[shape == 1] = np.clip(np.array(CLASSES[class_id - 1]) + rng.normal(0, 12, (shape.sum(), 3)), 0, 255)
    mask[0] = 255
    return image, mask


def write_toy(root: Path, train: int = 24, val: int = 24) -> Path:
    """Write the VOC layout: 8 classes, two of them in every image, images of various sizes."""
    rng = generator()
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{i} thing{i}\n" for i in range(1, 9)))
    for mode, count in (("train", train), ("val", val)):
        lines = []
        for number in range(count):
            height, width = rng.integers(36, 64, 2).tolist()
            image, mask = draw_image(rng, height, width, [number % 8 + 1, (number + 1 + number // 8) % 8 + 1])
            name = f"{mode}{number:03d}"
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            Image.fromarray(mask).save(root / "SegmentationClassAug" / f"{name}.png")
            lines.append(f"JPEGImages/{name}.jpg SegmentationClassAug/{name}.png\n")
        (root / "ImageSets" / f"{mode}.txt").write_text("".join(lines))
    return root


def toy_config(folder: Path, **keys: object) -> Config:
    """A tiny network on the toy data in `folder`/toy, its weights and results below `folder` too."""
    places = {"data_root": folder / "toy", "initmodel": folder / "initmodel", "exp": folder / "exp"}
    data = {"data_set": "toy", "num_classes": 8, "folds": 4, "area_threshold": 20, "test_episodes": 7, "workers": 2}
    settings = {**places, **data, **NETWORK, **keys}
    words = [str(word) for pair in settings.items() for word in pair]
    return load_config(ROOT / "config" / "base" / "pascal.yaml", words)


def entry_point(name: str) -> ModuleType:
    """`test`, `train` ... as a module; test.py has the name of a package in Python's own library."""
    spec = spec_from_file_location(f"{name}_entry_point", ROOT / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torchvision_vgg() -> Any:
    """torchvision's VGG-16 with batch norms, without its classifier of 124 million weights."""
    features = make_layers(cfgs["D"], batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.ModuleDict({"features": features}).eval()


def random_network(cfg: Config) -> HMNet:
    """An untrained network that calls half of the first episode's query foreground."""
    model = cast(HMNet, build_model(cfg, pretrained=False).eval())
    item = EvaluationEpisodes(cfg, *make_episodes(cfg, 0, 1))[0]
    *_, classifier = model.decoder.classifier.children()
    assert isinstance(classifier, nn.Conv2d) and classifier.bias is not None
    with torch.no_grad():
        classifier.weight.mul_(10)
        state = model.encode_support(item["support"][None], item["support_mask"][None])
        meta = model.score(model.embed_query(item["query"][None]), state).meta  # (1, 2, f, f)
        classifier.bias[1] -= (meta[:, 1] - meta[:, 0]).median()
    return model.train()


def write_weights(cfg: Config) -> Path:
    """Leave random weights where the base learner's and the network's are expected; returns the network's path."""
    path = cfg.experiment_dir / "snapshot" / f"best_{cfg.shot}shot.pth"
    save_checkpoint(cfg.base_learner_path, {"state_dict": checkpoint_state(build_base_learner(cfg, pretrained=False))})
    save_checkpoint(path, {"state_dict": checkpoint_state(random_network(cfg))})
    return path


def write_experiment(folder: Path, **keys: object) -> tuple[Config, Path]:
    """A toy data set, a config that lies where training leaves it, and random weights; scans are kept in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_toy(folder / "toy")
        cfg = toy_config(folder, **keys)
        path = write_weights(cfg)
    (cfg.experiment_dir / "config.yaml").write_text(cfg.to_yaml())
    return cfg, path

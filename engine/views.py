"""Computes the views of a training's images that are not stored yet (dataset/views.py)."""

import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from dataset.dataset import TrainingViews, collate, train_augmentation
from dataset.episode import wanted_classes
from dataset.index import ImageIndex, ImageMaskStore
from dataset.views import ViewStore
from engine.loader import load_steps
from model.methods.method import Method
from util.config import Config
from util.errors import UserError

BATCH = 16  # images


def stored_views(cfg: Config, model: Method, index: ImageIndex, files: ImageMaskStore) -> ViewStore:
    """All views that a training draws from; those that are not there are computed, and none twice.

    UserError for a backbone whose maps differ in size, for supports shown as boxes, and for files that cannot be read.
    """
    assert cfg.views
    if cfg.ann_type != "mask":
        raise UserError(f"views: should be empty for training with ann_type {cfg.ann_type}, as views hold masks")
    store = ViewStore(Path(cfg.view_folder) / view_digest(cfg, model), cfg.views, tuple(index.by_class))
    shown = [(name, class_id) for name in index.images for class_id in wanted_classes(index, name)]
    missing = [
        (name, class_id, number)
        for number in range(-store.count if cfg.paste_queries else 0, store.count)
        for name, class_id in shown
        if not store.path(files, name, class_id, number).is_file()
    ]
    batches = [list(range(start, min(start + BATCH, len(missing)))) for start in range(0, len(missing), BATCH)]
    dataset = TrainingViews(missing, index, files, train_augmentation(cfg), cfg.max_side)
    device = next(model.parameters()).device
    loader = load_steps(dataset, batches, 1, cfg.loader_worker_count, collate) if missing else ()
    for numbers, (batch,) in zip(batches, tqdm(loader, "views", total=len(batches), disable=None), strict=True):
        images = batch["image"].to(device, memory_format=torch.channels_last)
        try:
            with torch.no_grad():
                maps = model.backbone.joined(images).cpu()
        except ValueError as error:
            raise UserError(f"views: {cfg.backbone_name} cannot be stored: {error}; leave views empty") from None
        for number, view_maps, mask in zip(numbers, maps, batch["mask"], strict=True):
            store.write(store.path(files, *missing[number]), view_maps, mask)
    return store


def view_digest(cfg: Config, model: Method) -> str:
    """What maps depend on, besides image and mask: backbone, its weights, and how images are changed."""
    settings = (cfg.backbone_name, cfg.backbone_layers, cfg.dilate_first, cfg.max_side, train_augmentation(cfg))
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for key, value in sorted(model.backbone.state_dict().items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

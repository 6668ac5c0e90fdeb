"""Computes the crops of a training that are not stored yet (dataset/cached_crops.py)."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dataset.cached_crops import Crop, CropStore, crop_bytes, crop_files
from dataset.dataset import TrainingCrops, collate, train_augmentation
from dataset.episode import wanted_classes
from dataset.index import ImageIndex, ImageMaskStore
from engine.loader import load_steps
from model.methods.method import Method
from util.config import Config
from util.errors import UserError

BATCH = 16  # images
GIGABYTE = 10**9


def stored_crops(cfg: Config, method: Method, index: ImageIndex, files: ImageMaskStore) -> CropStore:
    """All crops that a training draws from; those that are not there are computed, and none twice.

    UserError for a method that takes more than the backbone's maps or changes them by the batch, for supports shown as
    boxes, for crops that would take more than `crop_limit_gb` or the disk has, and for files that cannot be read.
    """
    assert cfg.cached_crops
    if cfg.ann_type != "mask":
        raise UserError(f"cached_crops: should be empty for training with ann_type {cfg.ann_type}: crops hold masks")
    if not (method.maps_in("query") and method.maps_in("support")):
        raise UserError(f"cached_crops: should be empty for {cfg.arch}, which takes no maps of a support's whole image")
    if method.backbone.training:
        reason = "whose backbone normalises by the batch; or set corrections [frozen_statistics]"
        raise UserError(f"cached_crops: should be empty for {cfg.arch}, {reason}")
    store = CropStore(Path(cfg.crop_folder) / crop_digest(cfg, method), cfg.cached_crops, tuple(index.by_class))
    missing = _missing(cfg, store, index, files)
    batches = [list(range(start, min(start + BATCH, len(missing)))) for start in range(0, len(missing), BATCH)]
    dataset = TrainingCrops(cfg, missing, index, files, method.images)
    device = next(method.backbone.parameters()).device
    loader = load_steps(dataset, batches, 1, cfg.loader_worker_count, collate) if missing else ()
    for numbers, (batch,) in zip(batches, tqdm(loader, "cached crops", len(batches), disable=None), strict=True):
        images = batch["image"].to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            maps: dict[str, Tensor] = {name: x.cpu() for name, x in method.backbone(images, method.maps).items()}
        crops = [{name: x[i] for name, x in maps.items()} for i in range(len(numbers))]
        if numbers[0] == 0:
            check_room(cfg, len(missing), crop_bytes(crops[0], batch["mask"][0]))
        for number, crop, mask in zip(numbers, crops, batch["mask"], strict=True):
            store.write(store.path(files, *missing[number]), crop, mask)
    return store


def _missing(cfg: Config, store: CropStore, index: ImageIndex, files: ImageMaskStore) -> list[Crop]:
    shown = [(name, class_id) for name in index.images for class_id in wanted_classes(index, name)]
    return [
        (name, class_id, number)
        for number in range(-store.count if cfg.paste_queries else 0, store.count)
        for name, class_id in shown
        if not store.path(files, name, class_id, number).is_file()
    ]


def check_room(cfg: Config, count: int, each: int) -> None:
    """UserError unless `count` more crops of `each` bytes fit `crop_limit_gb` and the disk."""
    folder = Path(cfg.crop_folder)
    held, needed = sum(path.stat().st_size for path in crop_files(folder)), count * each
    remedy = f"lower cached_crops or make room by `python -m tools.cache --crops {folder} --clear`"
    crops = f"{folder}: {count} more crops take {needed / GIGABYTE:.3g} GB"
    if held + needed > cfg.crop_limit_gb * GIGABYTE:
        limit = f"crop_limit_gb {cfg.crop_limit_gb:g}, of which {held / GIGABYTE:.3g} are used"
        raise UserError(f"{crops}, beyond {limit}; raise it, {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(f"{crops}, but the disk has {free / GIGABYTE:.3g} GB left; {remedy}")


def crop_digest(cfg: Config, method: Method) -> str:
    """What maps depend on, besides image and mask: backbone, its weights and maps, and how images are changed."""
    augmentation = train_augmentation(cfg, method.images)
    network = (cfg.backbone_name, cfg.backbone_layers, cfg.output_stride, cfg.dilate_first)
    settings = (*network, cfg.max_side, augmentation, method.maps)
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for key, value in sorted(method.backbone.state_dict().items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""run.json: what the results of a folder depend on, and what came of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.backbone.build import imagenet_file
from prediction.choice import Source
from prediction.support import SupportClass
from util.errors import UserError
from util.files import atomic_write, file_digest
from util.schema import keys_of

SETTINGS = "run.json"


def fingerprint(source: Source, support: Sequence[SupportClass], root: Path) -> dict[str, Any]:
    """What predictions depend on: contents of weights and supports, the network; and where the images are.

    Raises UserError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for item in support:
        digest.update(f"{item.name}\0{item.value}\0".encode())
        for image, mask in zip(item.images, item.masks, strict=True):
            digest.update(_digest(image).encode())
            digest.update(repr(mask).encode() if isinstance(mask, list) else mask.tobytes())
    cfg = source.cfg
    used = source.weights or next((path for path in [imagenet_file(cfg)] if path.is_file()), None)
    contents: dict[str, Any] = {"query": str(root), "weights": used and _digest(used), "support": digest.hexdigest()}
    contents |= {"free": source.is_usual} | ({} if source.weights else {"arch": cfg.arch})
    return {**contents, **{key: getattr(cfg, key) for key in keys_of("network", "prediction")}}


def contents_of(path: Path) -> dict[str, Any]:
    """SHA-256 (`digest`) and size (`bytes`) of what a file holds; nothing where it cannot be read."""
    try:
        return {"digest": file_digest(path), "bytes": path.stat().st_size}
    except OSError:
        return {}


def _digest(path: Path) -> str:
    if not (contents := contents_of(path)):
        raise UserError(f"{path}: cannot be read; check the path and its rights")
    return contents["digest"]


def is_ours(path: Path) -> bool:
    """Whether a file says that the folder it is in holds predictions."""
    return path.name == SETTINGS and {"query", "weights", "support"} <= read_settings(path.parent).keys()


def read_settings(folder: Path) -> dict[str, Any]:
    """What run.json of a folder holds; nothing where it is missing or something else."""
    try:
        settings = json.loads((folder / SETTINGS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    atomic_write(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")

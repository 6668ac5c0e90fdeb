"""Networks that others share: folders that `tools.share` wrote, and repositories of the Hugging Face hub."""

import re
from pathlib import Path

from util.config import Config, load_config
from util.errors import UserError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
INSTALL = "install it by `pip install 'hmnet[hub]'`"


def open_shared(source: str | Path) -> tuple[Config, Path]:
    """Config and weights of a shared network: a folder, or a repository of the Hugging Face hub as `user/name`.

    UserError where there is neither, or something of it is missing.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = download_repository(str(source))
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{source}: has no {name}; give a folder or repository that `python -m tools.share` wrote")
    return load_config(folder / CONFIG), folder / WEIGHTS


def download_repository(name: str) -> Path:
    """The folder that holds a repository's files, fetched unless they are there; UserError says why it is not."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name}: neither a folder nor a repository of the Hugging Face hub, such as user/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{name}: no such folder, and a repository needs huggingface_hub: {INSTALL}") from None
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except Exception as error:  # of the network, the hub, the cache: many classes of several packages
        raise UserError(f"{name}: could not be fetched from the hub: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error of another package says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

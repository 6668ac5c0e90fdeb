"""Checkpoint files, read as data and written whole; what is in them is for others to know."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from util.errors import UserError, first_line
from util.files import atomic_open

SAFE = ".safetensors"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as data, never as code, to the CPU; UserError if it is missing or no plain tensor archive.

    A `.safetensors` file is read as such, any other as torch.save wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles
            if path.suffix.lower() == SAFE:
                from safetensors.torch import load_file

                content = load_file(path)
            else:
                _check_sums(path)
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise UserError(f"{path}: not a plain tensor archive, or damaged; not loaded: {_refusal(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return content


def read_entry(path: str | Path, key: str) -> Any:
    """One entry of a checkpoint that torch.save wrote, without its tensors' numbers; None where it has none.

    UserError for a file that is missing or no such archive, as `read_checkpoint` says it.
    """
    if Path(path).suffix.lower() == SAFE or not zipfile.is_zipfile(path):
        return None  # neither holds anything but tensors, or is from before training wrote configs
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise UserError(f"{path}: not a plain tensor archive, or damaged; not loaded: {_refusal(error)}") from error
    return content.get(key) if isinstance(content, dict) else None


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a .safetensors file says of itself; nothing for other files. UserError if it is damaged."""
    if Path(path).suffix.lower() != SAFE:
        return {}
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise UserError(f"{path}: not a plain tensor archive, or damaged; not loaded: {_refusal(error)}") from error


def _check_sums(path: Path) -> None:
    """ValueError for an archive with a record that is not what was written, which torch.load does not see."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:  # torch.save packs nothing
                raise ValueError("it unpacks to more than torch.save wrote")
            if (record := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {record} is wrong")


def _refusal(error: Exception) -> str:
    """Why a file was not read, without torch's advice to execute it."""
    if call := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it calls {call[1]}, and could run anything"
    if isinstance(error, pickle.UnpicklingError | KeyError | EOFError):
        return "it is no pickle of tensors and plain data"
    return re.sub(r"^\[enforce fail[^]]*\][ .]*", "", first_line(error)).split(". ")[0][:200]


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole: to a temporary file that is flushed to the disk and then renamed to `path`.

    UserError if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        with atomic_open(path) as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot write the checkpoint ({error}); free some space or choose another folder"
        ) from error

"""Checkpoints in both formats, whole and damaged."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.toy import generator
from util.checkpoint import read_checkpoint, read_metadata
from util.errors import UserError


def test_safetensors_are_read_as_such(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.randn(2).half(), "count": torch.tensor(7)}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"split": "2"})
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in read_checkpoint(tmp_path / "w.pth")["state_dict"].items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert read_metadata(tmp_path / "w.safetensors") == {"split": "2"}
    assert read_metadata(tmp_path / "w.pth") == {}


def test_damaged_safetensors_are_one_line(tmp_path: Path) -> None:
    path, rng = tmp_path / "w.safetensors", generator()
    save_file({"a": torch.randn(30)}, path)
    content = path.read_bytes()
    damaged = [b"", content[:5], content[:40], content[:-1], b"\xff" * 8 + content[8:], rng.bytes(200)]
    for wrong in damaged:
        path.write_bytes(wrong)
        for read in (read_checkpoint, read_metadata):
            with pytest.raises(UserError, match=f"^{path}: not a plain tensor archive, or damaged[^\n]*$"):
                read(path)
    with pytest.raises(UserError, match="no such checkpoint file"):
        read_checkpoint(tmp_path / "absent.safetensors")

"""Checkpoint files that are damaged, foreign or odd, and files that are written whole."""

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.toy import generator
from util.checkpoint import read_checkpoint, read_metadata, save_checkpoint
from util.errors import UserError

CASES = Path(__file__).parents[3] / "shared" / "cases" / "weights"


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


def test_numbers_changed_on_the_disk_and_packed_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    tensor = torch.randn(1000)
    torch.save({"state_dict": {"a": tensor}}, path)
    whole, numbers = path.read_bytes(), tensor.numpy().tobytes()
    start = whole.index(numbers)
    place = start + int(generator().integers(len(numbers)))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    assert not torch.equal(torch.load(path)["state_dict"]["a"], tensor), "torch does not see it"
    with pytest.raises(UserError, match=f"^{path}: .*the checksum of w/data/0 is wrong$"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("w/data.pkl", bytes(1 << 24))
    with pytest.raises(UserError, match=f"^{path}: .*it unpacks to more than torch.save wrote$"):
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


def content() -> dict[str, object]:
    return {"state_dict": {f"layer{i}.weight": torch.randn(3, 4) for i in range(4)}, "epoch": 3, "names": ["a", "b"]}


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
    (tmp_path / "W.SAFETENSORS").write_bytes(content)
    assert read_checkpoint(tmp_path / "W.SAFETENSORS").keys()


def foreign(path: Path, kind: str) -> None:
    """Write a file of some other kind."""
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind == "pickle of a number":
        path.write_bytes(pickle.dumps(5))
    elif kind == "legacy of a list":
        torch.save([torch.zeros(2)], path, _use_new_zipfile_serialization=False)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/readme.txt", "no tensors")
            if kind == "archive with a bad pickle":
                archive.writestr("w/data.pkl", b"\x80\x02}q\x00.")


KINDS = "folder", "empty", "text", "pickle of a number", "legacy of a list", "archive", "archive with a bad pickle"


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_kinds_are_one_line(tmp_path: Path, kind: str) -> None:
    foreign(tmp_path / "w.pth", kind)
    with pytest.raises(UserError, match=r"w\.pth: ") as refused:
        read_checkpoint(tmp_path / "w.pth")
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the collected damaged files")
def test_collected_damaged_files_are_one_line() -> None:
    for path in CASES.glob("*.bin"):
        with pytest.raises(UserError, match=path.name) as refused:
            read_checkpoint(path)
        assert "\n" not in str(refused.value)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, or a part cut out, doubled or filled with zeros."""
    changed, start = bytearray(data), rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 2, 8, 64)))
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    else:
        changed[start:end] = (b"", changed[start:end] * 2, bytes(end - start))[kind - 1]
    return bytes(changed)


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("zipped", 60),
        ("legacy", 60),
        *(pytest.param(kind, 3000, marks=pytest.mark.slow) for kind in ("zipped", "legacy", "safetensors")),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, kind: str, times: int) -> None:
    """Every damaged copy is read as data, or refused in one line; refused are most."""
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file({"a": torch.randn(3), "b.weight": torch.randn(2, 2)}, path)
    else:
        torch.save(content(), path, _use_new_zipfile_serialization=kind == "zipped")
    rng, whole, refusals = random.Random(int(torch.randint(2**62, ()))), path.read_bytes(), 0
    for _ in range(times):
        path.write_bytes(damage(whole, rng))
        try:
            assert isinstance(read_checkpoint(path), dict)
        except UserError as error:
            refusals += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refusals > times / 10

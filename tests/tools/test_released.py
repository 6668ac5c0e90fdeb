"""Released archives, as they are nested, shared and broken, to files where the configs look for them."""

import hashlib
import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torchvision

from tests.dataset.prepare.trees import pack
from tests.server import Server
from tests.toy import generator
from tools.prepare import main
from tools.released import RELEASES
from util.errors import UserError

CONFIG = "config/pascal/pascal_split0_resnet50_manet.yaml"
KNOWN = {
    "exp": [
        "exp/pascal/HMNet/split0/resnet50/snapshot/train_epoch_210_0.7216.pth",
        "exp/pascal/HMNet/split3/vgg/snapshot/train5_epoch_98.5_0.6571.pth",
        "exp/coco/HMNetAMP/split2/resnet50/snapshot/train_epoch_61_0.5291.pth",
    ],
    "initmodel": ["resnet50_v2.pth", "vgg16_bn.pth", "PSPNet/coco/split1/vgg/best.pth"],
}
UNKNOWN = {
    "exp": [
        "exp/pascal/HMNet/split0/resnet50/snapshot/optimizer.pth",
        "exp/pascal/HMNet/split4/resnet50/snapshot/train_epoch_1_0.5.pth",
        "exp/pascal/HMNet/split0/resnet50/log.txt",
        "pascal/HMNet/split0/resnet50/snapshot/train_epoch_1_0.5.pth.sh",
    ],
    "initmodel": ["PSPNet/coco/split1/vgg/best.pth.bak", "PSPNet/lvis/split1/vgg/best.pth", "readme.txt"],
}


@pytest.fixture
def made(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Both archives on the server, behind links that say nothing of their names; the files that should come of them."""
    rng, contents = generator(), {}
    for stem, suffix, nested in (("exp", ".tgz", "release/2024"), ("initmodel", ".zip", "")):
        for name in KNOWN[stem] + UNKNOWN[stem]:
            path = tmp_path / "raw" / stem / nested / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.bytes(50_000))
            if name in KNOWN[stem]:
                contents[name if stem == "exp" else f"initmodel/{name}"] = path.read_bytes()
        pack(server.folder / f"{stem}{suffix}", tmp_path / "raw" / stem).rename(server.folder / f"{stem}.tar.gz")
    for key, release in RELEASES.items():
        url = server.url.replace("mirror", f"share/{release.stem}.tar.gz?e=1&download=1")
        monkeypatch.setitem(RELEASES, key, release._replace(url=url))
    return contents


def weights(tmp_path: Path, *words: str) -> int:
    """The command with targets below tmp_path and a table of few rows."""
    places = ["initmodel", str(tmp_path / "out/initmodel"), "exp", str(tmp_path / "out/exp")]
    return main(["weights", *words, "--config", CONFIG, "--opts", *places, "backbone", "tiny"])


def files(folder: Path) -> dict[str, bytes]:
    """What lies below a folder, without the archives."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".tar.gz" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_known_files_and_no_others(
    made: dict[str, bytes], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through share links, over a broken connection, from any nesting; a second run changes and asks nothing."""
    server.break_after = [70_000]
    assert weights(tmp_path, "--download") == 0
    assert files(tmp_path / "out") == made
    *_, first, total = capsys.readouterr().out.splitlines()
    assert "best_1shot.pth" in first and total == "0 present, 2 absent, 0 misfit"
    asked, times = len(server.requests), {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert weights(tmp_path, "--download", "all") == 0
    assert "3 files below" in capsys.readouterr().out
    assert len(server.requests) == asked
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_one_archive_from_a_mirror(made: dict[str, bytes], server: Server, tmp_path: Path) -> None:
    assert weights(tmp_path, "--download", "backbones", "--mirror", server.url + "/") == 0
    assert files(tmp_path / "out").keys() == {name for name in made if name.startswith("initmodel")}
    assert server.requests == [("/mirror/initmodel.tar.gz", None)]


def test_archives_at_hand(made: dict[str, bytes], server: Server, tmp_path: Path) -> None:
    """Without --download what is there is taken; other endings of the name will do."""
    server.folder.joinpath("exp.tar.gz").rename(tmp_path / "exp.zip")
    weights(tmp_path, "--archives", str(tmp_path))
    assert files(tmp_path / "out").keys() == {name for name in made if name.startswith("exp")}
    assert server.requests == []
    with pytest.raises(UserError, match=r"holds no initmodel.tar.gz or exp.tar.gz; put them there, or give --archives"):
        weights(tmp_path, "--archives", str(tmp_path / "out"))


def test_other_files_are_not_overwritten(made: dict[str, bytes], server: Server, tmp_path: Path) -> None:
    own = tmp_path / "out" / KNOWN["exp"][0]
    own.parent.mkdir(parents=True)
    own.write_bytes(b"trained here")
    weights(tmp_path, "--archives", str(server.folder))
    assert files(tmp_path / "out") == made | {KNOWN["exp"][0]: b"trained here"}


def test_web_page_instead_of_an_archive(made: dict[str, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    release = RELEASES["checkpoints"]
    monkeypatch.setitem(RELEASES, "checkpoints", release._replace(url=release.url.removesuffix("&download=1")))
    expected = f"is a web page, no file: open it in a browser, save the file as {tmp_path}/out/initmodel/exp.tar.gz"
    with pytest.raises(UserError, match=expected):
        weights(tmp_path, "--download", "checkpoints")
    assert files(tmp_path / "out") == {}


def hostile(path: Path, *members: tuple[str, bytes]) -> None:
    """A tar whose members are links where their content begins with `->`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content.startswith(b"->"):
                member.type, member.linkname = tarfile.SYMTYPE, content[2:].decode()
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_hostile_archives(tmp_path: Path) -> None:
    """Links are passed over, names that leave the folder end it all, and nothing comes to lie outside."""
    folder, weight = "exp/pascal/HMNet/split0/resnet50/snapshot", "train_epoch_1_0.5.pth"
    outside = tmp_path / "outside"
    outside.mkdir()
    link = f"->{outside}".encode()
    archive = tmp_path / "archives/exp.tar"
    hostile(archive, (folder, link), (f"{folder}/{weight}", b"a"), (f"{folder}/train_epoch_2_0.5.pth", link))
    weights(tmp_path, "--archives", str(archive.parent))
    assert files(tmp_path / "out") == {f"{folder}/{weight}": b"a"}
    hostile(archive, (f"/{folder}/{weight}", b"b"), (f"../../{folder.replace('split0', 'split1')}/{weight}", b"c"))
    with pytest.raises(UserError, match=r"exp.tar is damaged or unsafe: the member \.\./\.\./exp.* leaves"):
        weights(tmp_path, "--archives", str(archive.parent))
    assert files(tmp_path) == {f"out/{folder}/{weight}": b"a", "archives/exp.tar": archive.read_bytes()}
    hostile(archive, ("exp/notes.txt", b"d"))
    with pytest.raises(UserError, match="exp.tar: has no file such as .*is it the right archive"):
        weights(tmp_path, "--archives", str(archive.parent))
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match="exp.tar is damaged or unsafe: file could not be opened successfully; delete"):
        weights(tmp_path, "--archives", str(archive.parent))


def test_torchvision_weights(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names that this project gives them, if their checksum is the one in torchvision's address."""
    rng = generator()
    contents: dict[str, bytes] = {}
    server.folder.mkdir()

    def fake(model: str) -> SimpleNamespace:
        content = contents.setdefault(model, rng.bytes(10_000))
        path = server.folder / f"{model}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        path.write_bytes(content if model != "vgg16_bn" else b"other")
        return SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=f"{server.url}/{path.name}"))

    monkeypatch.setattr(torchvision.models, "get_model_weights", fake)
    with pytest.raises(UserError, match=r"vgg16_bn-\w{8}.pth is damaged or not the official file: SHA256 .*again$"):
        weights(tmp_path, "--download", "torchvision")
    kept = {name: content for name, content in files(tmp_path / "out/initmodel").items() if "-" not in name}
    assert kept == {f"{model}.pth": contents[model] for model in ("resnet50", "resnet101")}

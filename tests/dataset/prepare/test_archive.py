"""Unpacking: only what is wanted, once, repaired when damaged, nothing outside the target."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dataset.prepare.archive import Archive, Source, unpack
from tests.dataset.prepare.trees import pack
from tests.toy import generator
from util.errors import UserError

Made = tuple[Archive, Path, dict[str, bytes]]


@pytest.fixture(params=[".tar", ".tgz", ".zip"])
def made(request: pytest.FixtureRequest, tmp_path: Path, rng: np.random.Generator) -> Made:
    files = {f"images/{i}.jpg": rng.bytes(30_000) for i in range(20)} | {"list.txt": b"1\n2\n"}
    for name, content in (files | {"unwanted/x.bin": b"x", "list.txt.bak": b"y"}).items():
        path = tmp_path / "raw/outer/inner" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    path = pack(tmp_path / f"archives/data{request.param}", tmp_path / "raw")
    return Archive(f"http://host/{path.name}", None, "outer/inner", ("images", "list.txt")), path, files


def run(archive: Archive, tmp_path: Path) -> None:
    unpack(archive, Source(tmp_path / "archives"), tmp_path / "out", tmp_path / "out/.records")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".records" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_unpacks_what_is_wanted_once_and_repairs_it(made: Made, tmp_path: Path) -> None:
    archive, path, files = made
    run(archive, tmp_path)
    assert contents(tmp_path / "out") == files
    (tmp_path / "out/images/3.jpg").unlink()
    (tmp_path / "out/images/7.jpg").write_bytes(files["images/7.jpg"][:100])
    kept = (tmp_path / "out/images/8.jpg").stat().st_mtime_ns
    run(archive, tmp_path)
    assert contents(tmp_path / "out") == files
    assert (tmp_path / "out/images/8.jpg").stat().st_mtime_ns == kept
    path.unlink()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    run(archive, tmp_path)  # needs no archive and touches nothing
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before
    (tmp_path / "out/images/3.jpg").unlink()
    with pytest.raises(UserError, match=r"out/images/3.jpg and 0 more are missing or cut short.*--download"):
        run(archive, tmp_path)


def test_missing_archive(made: Made, tmp_path: Path) -> None:
    made[1].unlink()
    with pytest.raises(UserError, match=f"{made[1]} is missing; put {made[1].name} into {made[1].parent}"):
        run(made[0], tmp_path)
    (tmp_path / "raw/outer/inner").rename(tmp_path / "out")  # unpacked by hand
    run(made[0], tmp_path)


def test_damage(made: Made, tmp_path: Path) -> None:
    """Cut short, or a bit flipped; of which a tar has no checksums."""
    archive, path, files = made
    right = path.read_bytes()
    flipped = bytearray(right)
    flipped[len(right) // 2] ^= 16
    for content in (right[:200_000], bytes(flipped))[: 1 if path.suffix == ".tar" else 2]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} is damaged"):
            run(archive, tmp_path)
        assert contents(tmp_path / "out") == {}
    path.write_bytes(right)
    run(archive, tmp_path)
    assert contents(tmp_path / "out") == files


def test_something_else_under_that_name(made: Made, tmp_path: Path) -> None:
    other = Archive(made[0].url, None, "outer", ("elsewhere",))
    with pytest.raises(UserError, match=f"{made[1]} has no outer/elsewhere"):
        run(other, tmp_path)


def write_tar(path: Path, *members: tuple[str, bytes | None], mode: str = "w") -> None:
    """Files of these contents; None is a link out of the archive."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))


def write_zip(path: Path, name: str, content: bytes, packing: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", packing) as zipped:
        zipped.writestr(name, content)


@pytest.mark.parametrize("name", ["images/../../../evil.txt", "images/../evil.txt", "images/../../out.txt"])
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_nothing_leaves_the_target(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"archives/data{suffix}"
    write_zip(path, name, b"evil") if suffix == ".zip" else write_tar(path, (name, b"evil"))
    with pytest.raises(UserError, match=f"{path} is damaged or unsafe.*{name}"):
        run(Archive(f"http://host/{path.name}", None, "", ("images",)), tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_links_are_not_followed(tmp_path: Path) -> None:
    write_tar(tmp_path / "archives/data.tar", ("images/link", None), ("./images/real", b"ok"))
    run(Archive("http://host/data.tar", None, "", ("images",)), tmp_path)
    assert contents(tmp_path / "out") == {"images/real": b"ok"}


@pytest.mark.parametrize("mode", ["w:xz", "w:bz2", zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
def test_damage_of_every_packing_is_one_line(tmp_path: Path, mode: str | int) -> None:
    archive = Archive("http://host/data.zip", None, "", ("images",))
    path, rng = tmp_path / "archives/data.zip", generator()
    content = rng.bytes(4000)
    if isinstance(mode, int):
        write_zip(path, "images/a", content, mode)
    else:
        write_tar(path, ("images/a", content), mode=mode)
    whole = path.read_bytes()
    for _ in range(40):
        start, end = sorted(rng.integers(0, len(whole), 2).tolist())
        path.write_bytes(whole[:start] + whole[end:])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            run(archive, tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
        assert contents(tmp_path / "out") in ({}, {"images/a": content})


def test_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "archives/data.zip"
    write_zip(path, "images/a.jpg", b"content")
    whole = path.read_bytes()
    local, central = whole.index(b"PK\x03\x04"), whole.index(b"PK\x01\x02")
    rows = [(b"<html>moved</html>", ".*; delete it")]
    for offset, value in ((6, 1), (8, 77)):  # encrypted; a method that nobody knows
        changed = bytearray(whole)
        changed[local + offset] = changed[central + offset + 2] = value
        rows.append((bytes(changed), ".*; delete it"))
    monkeypatch.setattr("dataset.prepare.archive.LARGEST", (50, 1000))
    write_zip(path, "images/a.jpg", bytes(1 << 20), zipfile.ZIP_DEFLATED)
    rows.append((path.read_bytes(), "with images/a.jpg it unpacks to far more"))
    for content, message in rows:
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} is damaged or unsafe: {message}") as caught:
            run(Archive("http://host/data.zip", None, "", ("images",)), tmp_path)
        assert "\n" not in str(caught.value) and contents(tmp_path / "out") == {}

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


def test_unpacks_what_is_wanted(made: Made, tmp_path: Path) -> None:
    run(made[0], tmp_path)
    assert contents(tmp_path / "out") == made[2]


def test_second_run_needs_no_archive_and_touches_nothing(made: Made, tmp_path: Path) -> None:
    run(made[0], tmp_path)
    made[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    run(made[0], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_repairs_what_is_missing_or_cut_short(made: Made, tmp_path: Path) -> None:
    run(made[0], tmp_path)
    (tmp_path / "out/images/3.jpg").unlink()
    (tmp_path / "out/images/7.jpg").write_bytes(made[2]["images/7.jpg"][:100])
    kept = (tmp_path / "out/images/8.jpg").stat().st_mtime_ns
    run(made[0], tmp_path)
    assert contents(tmp_path / "out") == made[2]
    assert (tmp_path / "out/images/8.jpg").stat().st_mtime_ns == kept
    made[1].unlink()
    (tmp_path / "out/images/3.jpg").unlink()
    with pytest.raises(UserError, match=r"out/images/3.jpg and 0 more are missing or cut short.*--download"):
        run(made[0], tmp_path)


def test_missing_archive(made: Made, tmp_path: Path) -> None:
    made[1].unlink()
    with pytest.raises(UserError, match=f"{made[1]} is missing; put {made[1].name} into {made[1].parent}"):
        run(made[0], tmp_path)


def test_takes_files_unpacked_by_hand(made: Made, tmp_path: Path) -> None:
    made[1].unlink()
    (tmp_path / "raw/outer/inner").rename(tmp_path / "out")
    run(made[0], tmp_path)


def test_archive_cut_short(made: Made, tmp_path: Path) -> None:
    made[1].write_bytes(made[1].read_bytes()[:200_000])
    with pytest.raises(UserError, match=f"{made[1]} is damaged"):
        run(made[0], tmp_path)
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("made", [".tgz", ".zip"], indirect=True)  # a tar has no checksums of its own
def test_flipped_bit(made: Made, tmp_path: Path) -> None:
    content = bytearray(made[1].read_bytes())
    content[len(content) // 2] ^= 16
    right = made[1].read_bytes()
    made[1].write_bytes(content)
    with pytest.raises(UserError, match=f"{made[1]} is damaged"):
        run(made[0], tmp_path)
    made[1].write_bytes(right)
    run(made[0], tmp_path)
    assert contents(tmp_path / "out") == made[2]


def test_something_else_under_that_name(made: Made, tmp_path: Path) -> None:
    other = Archive(made[0].url, None, "outer", ("elsewhere",))
    with pytest.raises(UserError, match=f"{made[1]} has no outer/elsewhere"):
        run(other, tmp_path)


@pytest.mark.parametrize("name", ["images/../../../evil.txt", "images/../evil.txt", "images/../../out.txt"])
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_nothing_leaves_the_target(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"archives/data{suffix}"
    path.parent.mkdir()
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(name, b"evil")
    else:
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match=f"{path} is damaged or unsafe.*{name}"):
        run(Archive(f"http://host/{path.name}", None, "", ("images",)), tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()] == [
        f"archives/{path.name}"
    ]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives/data.tar", "w") as tar:
        link = tarfile.TarInfo("images/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
        inside = tarfile.TarInfo("images/real")
        inside.size = 2
        tar.addfile(inside, io.BytesIO(b"ok"))
    run(Archive("http://host/data.tar", None, "", ("images",)), tmp_path)
    assert contents(tmp_path / "out") == {"images/real": b"ok"}


@pytest.mark.parametrize("mode", ["w:xz", "w:bz2", zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
def test_damage_of_every_packing_is_one_line(tmp_path: Path, mode: str | int) -> None:
    archive = Archive("http://host/data.zip", None, "", ("images",))
    path, rng = tmp_path / "archives/data.zip", generator()
    path.parent.mkdir()
    content = rng.bytes(4000)
    if isinstance(mode, int):
        with zipfile.ZipFile(path, "w", mode) as zipped:
            zipped.writestr("images/a", content)
    else:
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            member = tarfile.TarInfo("images/a")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
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
    archive = Archive("http://host/data.zip", None, "", ("images",))
    path = tmp_path / "archives/data.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("images/a.jpg", b"content")
    whole = path.read_bytes()
    local, central = whole.index(b"PK\x03\x04"), whole.index(b"PK\x01\x02")
    for offset, value in ((6, 1), (8, 77)):  # encrypted; a method that nobody knows
        changed = bytearray(whole)
        changed[local + offset] = changed[central + offset + 2] = value
        path.write_bytes(changed)
        with pytest.raises(UserError, match=f"{path} is damaged or unsafe: .*; delete it") as caught:
            run(archive, tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"<html>moved</html>")
    with pytest.raises(UserError, match=f"{path} is damaged or unsafe: .*; delete it") as caught:
        run(archive, tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("dataset.prepare.archive.LARGEST", (50, 1000))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("images/a.jpg", bytes(1 << 20))
    with pytest.raises(UserError, match="with images/a.jpg it unpacks to far more"):
        run(archive, tmp_path)
    assert contents(tmp_path / "out") == {}

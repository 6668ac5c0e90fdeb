"""Interrupted transfers go on where they stopped."""

from pathlib import Path

import numpy as np
import pytest

from dataset.prepare.download import ATTEMPTS, download, verify_checksum
from tests.dataset.prepare.conftest import md5
from tests.server import Server
from util.errors import UserError


@pytest.fixture
def content(server: Server, rng: np.random.Generator) -> bytes:
    server.folder.mkdir()
    content = rng.bytes(3_000_000)
    (server.folder / "file.tar").write_bytes(content)
    return content


def fetch(server: Server, path: Path) -> None:
    download(f"{server.url}/file.tar", path, pause=0)


def test_resumes_a_broken_connection(server: Server, content: bytes, tmp_path: Path) -> None:
    server.break_after = [1_000_000, 500_000]
    fetch(server, tmp_path / "got" / "file.tar")
    assert (tmp_path / "got" / "file.tar").read_bytes() == content
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["file.tar"]


def test_goes_on_with_the_part_of_an_earlier_run(server: Server, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.tar.part").write_bytes(content[:123_456])
    fetch(server, tmp_path / "file.tar")
    assert (tmp_path / "file.tar").read_bytes() == content
    assert server.requests == [("/mirror/file.tar", "bytes=123456-")]


def test_begins_anew_when_the_server_knows_no_ranges(server: Server, content: bytes, tmp_path: Path) -> None:
    server.ranges, server.break_after = False, [1_000_000]
    fetch(server, tmp_path / "file.tar")
    assert (tmp_path / "file.tar").read_bytes() == content


@pytest.mark.parametrize("surplus", [b"", b"more than there is"])
def test_part_that_leaves_nothing_to_ask_for(server: Server, content: bytes, tmp_path: Path, surplus: bytes) -> None:
    (tmp_path / "file.tar.part").write_bytes(content + surplus)
    fetch(server, tmp_path / "file.tar")
    assert (tmp_path / "file.tar").read_bytes() == content
    assert len(server.requests) == (2 if surplus else 1)


def test_gives_up_without_progress_and_keeps_the_part(server: Server, content: bytes, tmp_path: Path) -> None:
    server.break_after = [1000] + [0] * 20
    with pytest.raises(UserError, match=f"{server.url}/file.tar could not be fetched.*run again"):
        fetch(server, tmp_path / "file.tar")
    assert (tmp_path / "file.tar.part").read_bytes() == content[:1000]
    assert len(server.requests) == ATTEMPTS
    assert not (tmp_path / "file.tar").exists()


def test_what_is_refused_is_told_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file.tar could not be fetched: HTTP Error 404.*--mirror"):
        fetch(server, tmp_path / "file.tar")
    assert len(server.requests) == 1
    with pytest.raises(UserError, match="no http address"):
        download("file:///etc/hostname", tmp_path / "file")


def test_checksum(server: Server, content: bytes) -> None:
    path = server.folder / "file.tar"
    verify_checksum(path, md5(path))
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    right = md5(path)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=f"{path} is damaged.*MD5.*{right}"):
        verify_checksum(path, right)


def test_share_link_redirects_with_a_cookie(server: Server, content: bytes, tmp_path: Path) -> None:
    server.break_after = [1_000_000]
    download(server.url.replace("mirror", "share/file.tar?e=1&download=1"), tmp_path / "file.tar", pause=0)
    assert (tmp_path / "file.tar").read_bytes() == content
    address, private = "/share/file.tar?e=1&download=1", "/private/file.tar"
    ranged = "bytes=1000000-"
    assert server.requests == [(address, None), (private, None), (address, ranged), (private, ranged)]


def test_web_page_instead_of_a_file(server: Server, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.tar.part").write_bytes(content[:100])
    address = server.url.replace("mirror", "share/file.tar")
    with pytest.raises(UserError, match=f"share/file.tar is a web page.*browser.*as {tmp_path}/file.tar, run again"):
        download(address, tmp_path / "file.tar", pause=0)
    for start in (b"\n <HTML>", b"\xef\xbb\xbf<!DOCTYPE html>", b"<?xml version='1.0'?>\n<html>"):
        (server.folder / "disguised.tar").write_bytes(start + b"<body>Sign in</body></html>")
        with pytest.raises(UserError, match="disguised.tar is a web page"):
            download(f"{server.url}/disguised.tar", tmp_path / "disguised.tar", pause=0)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file.tar.part"]
    assert (tmp_path / "file.tar.part").read_bytes() == content[:100]


def test_size_that_was_announced_never_comes(server: Server, content: bytes, tmp_path: Path) -> None:
    server.surplus = 7
    with pytest.raises(UserError, match=rf"ended after {len(content)} of {len(content) + 7} bytes"):
        fetch(server, tmp_path / "file.tar")
    assert not (tmp_path / "file.tar").exists()


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("/loop", "infinite loop"),
        ("file:///etc/passwd", "not allowed"),
        ("http://[::1/file", "IPv6"),
        ("http://h:port/file", "port"),
        (f"http://{'h' * 80}/file", "label"),
    ],
)
def test_redirects_that_lead_nowhere_are_one_line(server: Server, tmp_path: Path, place: str, problem: str) -> None:
    server.odd["loop"] = (302, {"Location": place, "Content-Length": "0"}, b"")
    with pytest.raises(UserError, match=f"loop could not be fetched: .*{problem}.*run again") as caught:
        download(f"{server.url}/loop", tmp_path / "file.tar", pause=0)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", ["many", "-5"])
def test_lengths_that_are_none_are_taken_for_unknown(server: Server, tmp_path: Path, length: str) -> None:
    server.odd["file.tar"] = (200, {"Content-Length": length}, b"content")
    download(f"{server.url}/file.tar", tmp_path / "file.tar", pause=0)
    assert (tmp_path / "file.tar").read_bytes() == b"content"

"""README and docs: links lead somewhere, commands are understood, and are run where nothing is in the way.

A fenced `sh` block is run as it stands, beside generated images, unless the line above it is `<!-- not run: why -->`.
"""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from dataset.demo import draw_image, looks
from tests.toy import ROOT
from util.config import load_config

PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "exp/README.md", "initmodel/README.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?```sh\n(?P<text>.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|<)([^)\s]*)\)")
IDS = {page: str(page.relative_to(ROOT)) for page in PAGES}


class Parsed(BaseException):
    """The command line is understood: the command goes no further."""


def blocks(page: Path) -> list[tuple[str | None, str]]:
    """Why a block is not run, or None, and its lines."""
    return [(match["why"], match["text"].replace("\\\n", " ")) for match in BLOCK.finditer(page.read_text())]


def commands(page: Path) -> set[str]:
    """Every line that calls Python, of blocks and within the text, without what runs it in several processes."""
    text = page.read_text()
    lines = [line for _, block in blocks(page) for line in block.splitlines()]
    lines += [code for code in re.findall(r"`([^`\n]+)`", text) if code.startswith("python ")]
    calls = (re.search(r"(?:^|&& )(?:python|torchrun .*?(?=\b(?:train|predict)\.py)) ?(.*)", line) for line in lines)
    found = {call[1].split(" #")[0].split(" | ")[0].strip() for call in calls if call}
    return {line for line in found if "..." not in line and "NAME`" not in line}


def entry_file(words: list[str]) -> tuple[Path, list[str]]:
    """The file that `python WORDS` runs, and the words for it."""
    if words[0] == "-m":
        return ROOT / f"{words[1].replace('.', '/')}.py", words[2:]
    return ROOT / words[0], words[1:]


@pytest.mark.parametrize("page", PAGES, ids=IDS.values())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: IDS[page])
def test_command_lines_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: Any, *words: Any) -> None:
        raise Parsed(original(self, *words))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.chdir(ROOT)
    for command in sorted(commands(page)):
        file, words = entry_file(shlex.split(command))
        if file.stem in ("pytest", "launch", "describe") or file.is_relative_to(ROOT / "tests"):
            continue
        monkeypatch.setattr(sys, "argv", [str(file), *words])
        try:
            runpy.run_path(str(file), run_name="__main__")
        except Parsed as parsed:
            check_config(command, parsed.args[0])
        except SystemExit as stop:
            assert "--help" in command and not stop.code, command
        else:
            raise AssertionError(f"{command}: parses nothing")


def check_config(command: str, arguments: argparse.Namespace) -> None:
    """Config and --opts are as they should be where the file is there."""
    config = getattr(arguments, "config", None)
    if config and Path(config).is_file():
        assert load_config(config, arguments.opts if "opts" in arguments else []), command


def test_make_has_what_the_pages_name() -> None:
    names = {name for page in PAGES for name in re.findall(r"^make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "app", "gpu", "test-browser"} <= names
    for name in names:
        subprocess.run(["make", "-n", name], cwd=ROOT, check=True, capture_output=True)


def test_messages_are_those_of_the_program() -> None:
    rooms = ("util", "model", "dataset", "engine", "prediction", "tools")
    source = "".join(file.read_text() for room in rooms for file in (ROOT / room).rglob("*.py"))
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    assert [text for row in rows for text in re.findall(r"`([^`]+)`", row) if text not in source] == []


def test_one_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.search(r"^version: (.+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


class Runnable(NamedTuple):
    page: Path
    text: str


RUNNABLE = [Runnable(page, text) for page in PAGES for why, text in blocks(page) if why is None]


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Path]:
    """The tree in a folder of its own, with images to segment and a `python` on the path."""
    folder, programs = tmp_path / "tree", tmp_path / "bin"
    for place in (folder, programs):
        place.mkdir()
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("exp", "initmodel", "build"):
            (folder / entry.name).symlink_to(entry)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    write_images(folder, 4)
    yield folder


def write_images(folder: Path, count: int) -> None:
    """support/ and photos/ of one class, PICTURES/ in folders of two."""
    for number in range(count):
        image, labels = draw_image(looks(), 3, 120, np.random.default_rng(number))
        mask = Image.fromarray(np.where(labels == 3, 255, 0).astype(np.uint8))
        places = [folder / ("photos" if number else "support")]
        places += [folder / "PICTURES" / name for name in ("heart", "star")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.jpg")
            if place.name != "photos":
                mask.save(place / f"{number}.png")


@pytest.mark.slow
@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: f"{block.page.stem}-{block.text.split(chr(10))[0][:40]}")
def test_blocks_run(block: Runnable, sandbox: Path) -> None:
    path = f"{sandbox.parent / 'bin'}:{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-ec", block.text], cwd=sandbox, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

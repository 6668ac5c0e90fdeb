"""The diagrams of README and docs."""

import xml.etree.ElementTree as ET
from pathlib import Path

from tests.toy import ROOT
from tools.paper.architecture import draw_diagrams

TEXT = "{http://www.w3.org/2000/svg}text"


def words(file: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ET.parse(file).iter(TEXT)]


def test_docs_have_the_diagrams_as_they_are(tmp_path: Path) -> None:
    for file in draw_diagrams(tmp_path):
        assert words(file) and words(file) == words(ROOT / "docs/images" / file.name)


def test_rooms_are_those_that_lint_imports_orders(tmp_path: Path) -> None:
    (house,) = (file for file in draw_diagrams(tmp_path) if file.stem == "house")
    layers = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("layers"))
    order = [name for name in words(house) if f'"{name}"' in layers.replace(" | ", '", "')]
    assert order == ["tools", "prediction", "engine", "model", "dataset", "util"]

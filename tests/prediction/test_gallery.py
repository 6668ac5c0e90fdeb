"""The page of thumbnails: whatever names hold, and whatever has been taken away."""

from pathlib import Path

import numpy as np
from PIL import Image

from prediction.gallery import write_gallery
from prediction.manifest import Record


def record(file: str, name: str | None, value: int | None = 1) -> Record:
    shown = {"mask": f"masks/{file}.png", "overlay": f"overlays/{file}.jpg"}
    return {
        "file": file,
        "class": name,
        "value": value,
        "area": 3,
        "score": 0.5,
        "found": int(name is not None),
        **shown,
    }


def test_names_are_text(tmp_path: Path) -> None:
    records = {"<b>&.jpg": [record("<b>&.jpg", "<script>")], "none.jpg": [record("none.jpg", None, None)]}
    write_gallery(tmp_path / "index.html", "<i>", records, ["<u>: torn\x07"])
    page = (tmp_path / "index.html").read_text()
    assert "&lt;b&gt;&amp;.jpg" in page and "&lt;script&gt;" in page and "&lt;i&gt;" in page and "&lt;u&gt;" in page
    assert "<script" not in page and "\x07" not in page
    assert "2 images" in page and "1 could not be read" in page and "nothing found" in page


def test_thumbnails_lie_in_the_page(tmp_path: Path) -> None:
    for folder, suffix in (("masks", "png"), ("overlays", "jpg")):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / folder / f"a.jpg.{suffix}")
    write_gallery(tmp_path / "index.html", "out", {"a.jpg": [record("a.jpg", "cat")]}, [])
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1 and "cat: 3 pixels, score 0.50" in page

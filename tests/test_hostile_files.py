"""Whatever bytes a parser gets, the outcome is a value or one line: hypothesis looks for others."""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from dataset.lists import read_class_file, read_list
from dataset.prepare.annotations import CocoFile, LabelMeFile, parse
from dataset.prepare.files import raise_if_any
from dataset.prepare.image import upright_label
from dataset.prepare.labelme import read_labelme
from dataset.prepare.sources import read_label_map, read_part, read_source
from prediction.manifest import read_manifest
from prediction.support import read_boxes
from util.checkpoint import read_checkpoint
from util.config import load_config
from util.errors import UserError, printable
from util.mask import interpret_mask

pytestmark = pytest.mark.slow

PERIOD = 20  # seconds that one parser may take for all of its inputs

numbers = st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from([0, 1, 8, 10, 1e308, -1])
words = (
    st.text(max_size=12)
    | st.sampled_from(["a.jpg", "cat", "dog"])
    | st.sampled_from(["a.jpg", "../a.jpg", "cat", "a\\b", "\0", "\x1b[2J", "polygon", "mask"])
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


def entry(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A JSON object that mostly has these keys with fitting values."""

    def mostly(fitting: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.integers(0, 14).flatmap(lambda choice: fitting if choice else json_values)

    whole = st.fixed_dictionaries({key: mostly(fitting) for key, fitting in keys.items()})
    return st.tuples(whole, st.sampled_from(["", "", "", *keys])).map(
        lambda drawn: {key: value for key, value in drawn[0].items() if key != drawn[1]}
    )


inside = st.tuples(st.integers(0, 9), st.integers(0, 7))
points = st.lists(inside, min_size=2, max_size=5) | st.lists(st.tuples(numbers, numbers), max_size=5)
runs = entry(size=st.just([8, 10]), counts=st.lists(st.integers(0, 80), max_size=5) | st.just([30, 50]) | words)
coco = entry(
    images=st.lists(entry(id=st.integers(0, 2), file_name=words, width=st.just(10), height=st.just(8)), max_size=3),
    categories=st.lists(entry(id=st.integers(0, 2), name=words), max_size=3),
    annotations=st.lists(
        entry(
            image_id=st.integers(0, 2),
            category_id=st.integers(0, 2),
            segmentation=st.lists(st.lists(st.floats(0, 12), min_size=6, max_size=8), max_size=2) | runs,
        ),
        max_size=3,
    ),
)
kinds = st.sampled_from(["polygon", "rectangle", "circle", "mask", "point", "rotation", "ellipse"])
labelme = entry(
    shapes=st.lists(entry(label=words | st.integers(0, 9), points=points, shape_type=kinds, mask=words), max_size=3),
    imagePath=words,
    imageHeight=st.just(8),
    imageWidth=st.just(10),
)
lines = st.lists(st.lists(words | numbers.map(str), max_size=6).map(" ".join), max_size=5).map("\n".join)


def encoded(text: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    codes = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])
    return st.builds(lambda words, code: words.encode(code, "replace"), text, codes) | st.binary(max_size=200)


def one_line(function: Callable[[], Any]) -> bool:
    """Whether there is a value; anything but that or a UserError is a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
        return True
    except UserError as error:
        assert str(error).strip() and "\n" not in printable(str(error))
        return False


def image(folder: Path, name: str = "a.jpg") -> Path:
    path = folder / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng().integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(path)
    return path


def search(
    inputs: st.SearchStrategy[bytes], path: Path, function: Callable[[Path], Any], capsys: Any, count: int = 2000
) -> None:
    """Hand `count` inputs to a parser as a file, for PERIOD seconds at most."""
    end, tried, values = time.monotonic() + PERIOD, 0, 0

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def attempt(data: bytes) -> None:
        nonlocal tried, values
        if time.monotonic() < end:
            path.write_bytes(data)
            tried += 1
            values += one_line(lambda: function(path))

    attempt()
    with capsys.disabled():
        print(f" {path.name}: {tried} inputs, {values} of them were read", end="")
    assert tried > 50


def dumped(content: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return content.map(lambda tree: json.dumps(tree).encode())


yaml_text = encoded(
    lines
    | st.sampled_from(["epochs: ", "base: ", "- ", "&a [", "*a", "<<: ", "{", "? "]).flatmap(
        lambda start: lines.map(lambda text: start + text)
    )
    | dumped(st.dictionaries(st.sampled_from(["epochs", "exp", "base", "seeds", "shot"]), json_values)).map(
        bytes.decode
    )
)


def test_yaml(tmp_path: Path, capsys: Any) -> None:
    search(yaml_text, tmp_path / "c.yaml", load_config, capsys, 300)


@pytest.mark.parametrize("reader", [read_list, read_class_file, read_label_map])
def test_lists(tmp_path: Path, capsys: Any, reader: Callable[[Path], Any]) -> None:
    rows = st.lists(st.tuples(words, words | st.just("0,9,9")).map(":".join), max_size=4).map("\n".join)
    search(encoded(lines | rows), tmp_path / f"{reader.__name__}.txt", reader, capsys)


def test_voc_lists(tmp_path: Path, capsys: Any) -> None:
    known = {"a", "my a", "b/a"}
    search(encoded(lines), tmp_path / "train.txt", lambda path: read_part(path, tmp_path, known), capsys)


def test_boxes(tmp_path: Path, capsys: Any) -> None:
    image(tmp_path)
    head = "file,left,top,right,bottom,class\n"
    rows = st.lists(st.lists(words | numbers.map(str), max_size=7).map(",".join), max_size=4).map("\n".join)
    search(
        encoded(rows.map(lambda text: head + text) | lines),
        tmp_path / "boxes.csv",
        lambda path: read_boxes(path, tmp_path),
        capsys,
    )


def test_coco(tmp_path: Path, capsys: Any) -> None:
    image(tmp_path)

    def read(path: Path) -> None:
        parse(CocoFile, path, "COCO")
        for item in read_source(path, None, 1).images:
            upright_label(item)

    search(dumped(coco | json_values) | st.binary(max_size=80), tmp_path / "coco.json", read, capsys)


def test_labelme(tmp_path: Path, capsys: Any) -> None:
    image(tmp_path)

    def read(path: Path) -> None:
        parse(LabelMeFile, path, "LabelMe")
        for item in read_labelme(tmp_path, [path], None).images:
            upright_label(item)

    search(dumped(labelme | json_values) | st.binary(max_size=80), tmp_path / "a.json", read, capsys)


def test_manifest(tmp_path: Path, capsys: Any) -> None:
    keys = {"file": words, "found": st.integers(0, 2), "class": words, "value": numbers, "mask": words, "digest": words}
    rows = st.lists(dumped(entry(**keys) | json_values), max_size=4).map(b"\n".join)
    search(rows | st.binary(max_size=80), tmp_path / "manifest.jsonl", lambda path: read_manifest(path.parent), capsys)


def test_masks_and_checkpoints(tmp_path: Path, capsys: Any) -> None:
    import torch

    index = np.random.default_rng().integers(0, 3, (8, 10), dtype=np.uint8)
    Image.fromarray(index).save(tmp_path / "m.png")
    Image.fromarray(index).convert("P").save(tmp_path / "m.tif")
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "w.pth")

    def damaged(data: bytes) -> st.SearchStrategy[bytes]:
        def change(places: list[tuple[int, int]], end: int) -> bytes:
            content = bytearray(data)
            for place, value in places:
                content[place % len(content)] = value
            return bytes(content[:end])

        places = st.lists(st.tuples(st.integers(0, len(data)), st.integers(0, 255)), max_size=4)
        return st.builds(change, places, st.integers(len(data) // 2, len(data)) | st.just(len(data)))

    for name, reader in (("m.png", interpret_mask), ("m.tif", interpret_mask), ("w.pth", read_checkpoint)):
        inputs = damaged((tmp_path / name).read_bytes())
        search(inputs, tmp_path / name, reader, capsys, 1000)


def test_several_complaints_are_one_error(capsys: Any) -> None:
    with pytest.raises(UserError, match="2 files failed .*; the first: a"):
        raise_if_any(["a", "b\x07"], "files")
    assert capsys.readouterr().err == "a\nb\\x07\n"

"""What tests of predict.py share: images, command lines and what they leave."""

import itertools
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import predict
from prediction.manifest import Part, Record
from tests.toy import draw_image, generator

COLORS = (3, 5)  # of the classes that the supports show


def scene(height: int = 40, width: int = 52) -> np.ndarray:
    return draw_image(generator(), height, width, list(COLORS))[0]


def write_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(scene()).save(folder / f"{number}.jpg")
    return folder


def arguments(weights: Path, tmp_path: Path, *more: object) -> list[str]:
    words = ("--weights", weights, "--no-expectation", "--support", tmp_path / "support")
    return ["predict.py", *map(str, (*words, "--query", tmp_path / "photos", "--out", tmp_path / "out", *more))]


def manifest(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]


def lasting(tmp_path: Path) -> list[dict[str, Any]]:
    """The manifest without what differs from run to run."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in manifest(tmp_path)]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def masks(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "out/masks").iterdir()}


def killed_at(number: int) -> int:
    """predict.main, killed when it is about to note the so many-th image."""
    append, numbers = Part.append, itertools.count(1)

    def note(part: Part, records: Sequence[Record]) -> None:
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        append(part, records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "append", note)
        return predict.main()

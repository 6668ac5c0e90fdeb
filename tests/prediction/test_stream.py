"""Work that overlaps keeps its order, stays bounded, and stops where something goes wrong."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prediction.predictor import Predictor
from prediction.stream import in_batches, in_threads
from tests.toy import draw_image, generator
from util.errors import UserError


def test_order_and_bounds() -> None:
    begun: list[int] = []
    running = threading.Semaphore(3)

    def double(number: int) -> int:
        assert running.acquire(blocking=False)  # never more than three at once
        begun.append(number)
        running.release()
        return 2 * number

    def numbers() -> Iterator[int]:
        for number in range(50):
            assert number - len(fetched) <= 6  # one more than may wait
            yield number

    fetched: list[int] = []
    for result in in_threads(double, numbers(), threads=3, ahead=5):
        fetched.append(result)
    assert fetched == [2 * number for number in range(50)] and sorted(begun) == list(range(50))
    assert list(in_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_error_comes_in_its_turn_and_ends_the_rest() -> None:
    begun = set()

    def fail(number: int) -> int:
        begun.add(number)
        if number == 4:
            raise OSError("full")
        return number

    fetched = []
    with pytest.raises(OSError, match="full"):
        for result in in_threads(fail, range(1000), threads=2, ahead=3):
            fetched.append(result)
    assert fetched == [0, 1, 2, 3] and len(begun) < 20


def test_a_stream_gives_what_single_images_give(predictor: Predictor, tmp_path: Path) -> None:
    files = []
    for number in range(5):
        image, mask = draw_image(generator(), 40 + 9 * number, 50, [3])
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    with pytest.raises(UserError, match="set_support"):
        list(predictor.stream(files))
    predictor.set_support([image], [(mask == 3).astype(np.uint8)])
    expected = [predictor.predict(file) for file in files]
    for batch in (None, 2):
        for found, single in zip(predictor.stream(iter(files), batch), expected, strict=True):
            assert np.abs(found.class_probabilities - single.class_probabilities).max() < 1e-4
    (alone,) = predictor.stream(str(files[1]))
    assert np.abs(alone.class_probabilities - expected[1].class_probabilities).max() < 1e-4
    for batch in (0, -1):
        with pytest.raises(UserError, match=f"a batch of {batch}: should be at least 1"):
            list(predictor.stream(files, batch))
    files[3].write_text("no image")
    stream = predictor.stream(files)
    assert [next(stream).mask.shape[0] for _ in range(3)] == [40, 49, 58]
    with pytest.raises(UserError, match=r"3\.png"):
        next(stream)


def test_a_prediction_is_saved_and_drawn(predictor: Predictor, tmp_path: Path) -> None:
    image, mask = draw_image(generator(), 30, 300, [3])
    large = np.repeat(np.repeat(image, 10, 0), 10, 1)
    predictor.set_support([image], [(mask == 3).astype(np.uint8)])
    prediction = predictor.predict(large)
    prediction.save(tmp_path / "new/mask.png")
    with Image.open(tmp_path / "new/mask.png") as saved:
        assert saved.mode == "P" and np.array_equal(np.asarray(saved), prediction.mask)
    drawn = prediction.overlay(large)  # 2000 x 200 and the legend, letters of a fortieth of the longer side
    assert drawn.shape[1] == 2000 and drawn.shape[0] >= 200 + 2000 // 40
    assert np.array_equal(drawn, prediction.overlay(Image.fromarray(large)))

"""The service, asked in this process; Label Studio's requests are written as it writes them."""

import base64
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from prediction import service
from prediction.label_studio import annotation_masks, as_result, decode_brush, encode_brush, find_control
from prediction.predictor import Prediction, Predictor
from prediction.service import Service
from tests.toy import draw_image, generator, write_experiment
from util.config import Config
from util.errors import UserError

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from tools import app, serve

INTERFACE = """<View><Image name="img" value="$photo"/><{0} name="tag" toName="img">
<Label value="thing"/><Label value="other"/></{0}></View>"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    return write_experiment(tmp_path_factory.mktemp("serve"))


@pytest.fixture
def predictor(experiment: tuple[Config, Path]) -> Predictor:
    return Predictor.from_checkpoint(*experiment, device="cpu")


@pytest.fixture
def client(predictor: Predictor) -> Iterator[Any]:
    with TestClient(serve.make_app(Service(predictor, limit=1 << 20)), "http://localhost") as running:
        yield running


def as_png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def as_text(array: np.ndarray) -> str:
    return base64.b64encode(as_png(array)).decode()


def thing() -> tuple[np.ndarray, np.ndarray]:
    image, mask = draw_image(generator(), 40, 50, [3])
    return image, (mask == 3).astype(np.uint8)


def test_supports_in_masks_and_polygons_out(client: Any, predictor: Predictor) -> None:
    image, mask = thing()
    query = as_png(draw_image(generator(), 33, 44, [3])[0])
    assert client.get("/health").json() == {"status": "UP", "model_class": "HMNet"}
    answer = client.post("/segment", content=query)
    assert answer.status_code == 400 and "no support is set" in answer.json()["detail"]
    shots = {"classes": {"thing": [{"image": as_text(image), "mask": as_text(mask * 255)}]}}
    assert client.post("/support", json=shots).json() == {"classes": ["thing"]}
    predictor.set_support(image, mask)
    expected = predictor.predict(np.asarray(Image.open(io.BytesIO(query))))
    answer = client.post("/segment", content=query)
    assert answer.headers["Content-Type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected.mask)
    found = client.post("/segment?format=polygons", content=query).json()
    drawn = np.zeros((33, 44), np.uint8)
    for item in found["objects"]:
        cv2.fillPoly(drawn, [np.array(item["polygon"], np.int32)], 1)
        assert item["class"] == "thing" and 0 < item["score"] <= 1
    assert (found["width"], found["height"]) == (44, 33) and np.array_equal(drawn, expected.mask)


def test_mistakes_are_answered_in_one_line(client: Any) -> None:
    image, mask = thing()
    for shots, line in (
        ({"classes": {}}, "classes: Dictionary should have at least 1 item"),
        ({"classes": {"a": [{"image": "x"}]}}, "classes.a.0.mask: Field required"),
        ({"classes": {"a": [{"image": "*", "mask": ""}]}}, "no base64"),
        ({"classes": {"a": [{"image": "é", "mask": ""}]}}, "no base64"),
        ({"classes": {"a": [{"image": as_text(image), "mask": as_text(mask * 0)}]}}, "marks no object"),
    ):
        answer = client.post("/support", json=shots)
        assert answer.status_code in (400, 422) and line in answer.json()["detail"]
    assert client.post("/segment", content=b"x" * (1 << 20 | 1)).status_code == 413
    assert client.post("/segment?format=gif", content=b"x").status_code == 400
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_others_need_the_token(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(serve.make_app(Service(predictor), token="secret"))
    basic = "Basic " + base64.b64encode(b"any:secret").decode()
    for sent, code in ((None, 401), ("Bearer secrets", 401), ("Bearer secret", 200), (basic, 200)):
        headers = {"Authorization": sent} if sent else {}
        assert client.post("/setup", json={}, headers=headers).status_code == code
    monkeypatch.setattr(sys, "argv", ["serve", "--host", "0.0.0.0"])
    with pytest.raises(UserError, match=r"--host 0.0.0.0: others could use the service; give a --token"):
        serve.parse_arguments()


def test_ports_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for port, parse in itertools.product(("99999999", "-1"), (serve.parse_arguments, app.parse_arguments)):
        monkeypatch.setattr(sys, "argv", ["serve", "--port", port])
        with pytest.raises(UserError, match=f"--port {port}: should be from 0 to 65535"):
            parse()


def test_too_many_requests_are_sent_away(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_WAITING", 0)
    answer = client.post("/segment", content=b"x")
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"


def label_studio_task(number: int, image: np.ndarray) -> dict[str, Any]:
    return {"id": number, "data": {"photo": "data:image/png;base64," + as_text(image)}, "is_labeled": False}


@pytest.mark.parametrize("tag", ["BrushLabels", "PolygonLabels"])
def test_label_studio_gets_predictions_from_the_annotations_so_far(client: Any, predictor: Predictor, tag: str) -> None:
    interface = INTERFACE.format(tag)
    image, mask = thing()
    query = draw_image(generator(), 33, 44, [3])[0]
    asked = {"tasks": [label_studio_task(2, query)], "project": "7.1700000000", "label_config": interface, "params": {}}
    setup = {"project": "7.1700000000", "schema": interface, "hostname": "http://localhost:8080", "access_token": "t"}
    assert client.post("/setup", json=setup).json() == {"model_version": "HMNet"}
    assert client.post("/predict", json=asked).json() == {"results": [{"result": [], "score": 0.0}]}
    shown = as_result(Prediction(("thing",), mask, mask[None].astype(np.float32)), find_control(interface))
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 7, "label_config": interface}}
    event |= {"task": label_studio_task(1, image), "annotation": {"id": 5, "result": shown}}
    assert client.post("/webhook", json=event).json() == {"status": "ok"}
    predictor.set_support({"thing": ([image], [annotation_masks(shown, mask.shape)["thing"]])})
    expected = predictor.predict(query)
    (answer,) = client.post("/predict", json=asked).json()["results"]
    assert answer["score"] == pytest.approx(expected.score)
    assert answer["result"] == json.loads(json.dumps(as_result(expected, find_control(interface))))
    for region in answer["result"]:
        assert (region["from_name"], region["to_name"], region["type"]) == ("tag", "img", tag.lower())
        assert region["value"][tag.lower()] == ["thing"] and region["original_width"] == 44
    drawn = annotation_masks(answer["result"], (33, 44)).get("thing", np.zeros((33, 44), np.uint8))
    assert tag == "PolygonLabels" or np.array_equal(drawn, expected.mask)
    other = {**asked, "project": "8.1700000000"}  # which has shown nothing
    assert client.post("/predict", json=other).json()["results"][0]["result"] == []
    client.post("/webhook", json={**event, "action": "ANNOTATIONS_DELETED", "annotation": None})
    assert client.post("/predict", json=asked).json()["results"][0]["result"] == []


def test_images_come_from_label_studio_alone(client: Any) -> None:
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 7, "label_config": INTERFACE.format("BrushLabels")}}
    event |= {"task": {"id": 1, "data": {"photo": "http://169.254.169.254/secret"}}, "annotation": {"result": []}}
    answer = client.post("/webhook", json=event)
    assert answer.status_code == 400 and "lies on no machine that --label-studio names" in answer.json()["detail"]


def unpack(packed: list[int]) -> list[int]:
    """Label Studio's brush as its own reader takes it apart, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        count = read(sizes[read(2)]) + 1
        values += [read(word)] * count if repeated else [read(word) for _ in range(count)]
    return values


@pytest.mark.parametrize("make", [np.zeros, np.ones, lambda size, kind: generator().integers(0, 2, size, kind)])
def test_brushes(make: Callable[..., np.ndarray]) -> None:
    for size in ((1, 1), (7, 13), (60, 90)):
        region = make(size, np.uint8)
        packed = encode_brush(region)
        assert unpack(packed) == np.repeat(region.ravel() * 255, 4).tolist()
        assert np.array_equal(decode_brush(packed, size), region)
        with pytest.raises(ValueError, match="run lengths of"):
            decode_brush(packed, (size[0] + 1, size[1]))
        with pytest.raises(ValueError, match="stop too early"):
            decode_brush(packed[: len(packed) // 2], size)
    literal = f"{8:032b}{7:05b}" + "".join(f"{count - 1:04b}" for count in (3, 4, 8, 16))
    literal += "000" + f"{7:03b}" + "".join(f"{value:08b}" for value in (0, 0, 0, 9, 0, 0, 0, 0))
    literal += "0" * (-len(literal) % 8)
    packed = [int(literal[at : at + 8], 2) for at in range(0, len(literal), 8)]
    assert decode_brush(packed, (1, 2)).tolist() == [[1, 0]]


def test_polygons_have_few_corners() -> None:
    mask = np.zeros((200, 300), np.uint8)
    cv2.ellipse(mask, (140, 90), (100, 60), 30, 0, 360, 1, -1)
    prediction = Prediction(("thing",), mask, mask[None].astype(np.float32))
    (region,) = as_result(prediction, find_control(INTERFACE.format("PolygonLabels")))
    drawn = annotation_masks([region], mask.shape)["thing"]
    assert len(region["value"]["points"]) < 40 and (drawn & mask).sum() > 0.97 * (drawn | mask).sum()


def test_rectangles_and_interfaces() -> None:
    value = {"x": 10, "y": 20, "width": 50, "height": 40, "rotation": 0, "rectanglelabels": ["thing"]}
    box = {"type": "rectanglelabels", "value": value}
    mask = annotation_masks([box, {"type": "choices", "value": {"choices": ["a"]}}], (10, 20))
    assert set(mask) == {"thing"} and mask["thing"][2:6, 2:12].all() and mask["thing"].sum() == 40
    for wrong in ("<View/>", "<View>", "<!DOCTYPE x><View/>"):
        with pytest.raises(UserError, match="label_config: "):
            find_control(wrong)

"""What a service for labelling tools does: supports, images, and what annotators of Label Studio have drawn so far."""

import asyncio
import base64
import io
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from prediction.formats.outline import single_outline
from prediction.label_studio import annotation_masks, as_result, find_control
from prediction.objects import find_objects, object_scores
from prediction.predictor import Prediction, Predictor
from util.errors import UserError, first_line
from util.image import RGB, read_image

MAX_SHOTS = 20  # annotated images of a project that are looked at, the latest
MAX_WAITING = 32  # requests
MAX_MEGAPIXELS = 100  # of an image
TIMEOUT = 30  # seconds for an image from Label Studio
Result = TypeVar("Result")


class Shot(BaseModel):
    """A support: files as base64."""

    image: str
    mask: str


class SupportRequest(BaseModel):
    """The classes to look for."""

    classes: dict[str, list[Shot]] = Field(min_length=1)


class Task(BaseModel):
    """Label Studio's task."""

    id: int = 0
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """What Label Studio asks."""

    tasks: list[Task]
    project: str = ""
    label_config: str


class Annotation(BaseModel):
    """Label Studio's annotation."""

    result: list[dict[str, Any]] = []


class Project(BaseModel):
    """Label Studio's project."""

    id: int
    label_config: str = ""


class Event(BaseModel):
    """What Label Studio tells when an annotation was saved."""

    action: str
    project: Project | None = None
    task: Task | None = None
    annotation: Annotation | None = None


class BusyError(Exception):
    """Too many requests wait."""


class Service:
    """The predictor, its one thread, and what the projects of Label Studio have shown it."""

    def __init__(self, predictor: Predictor, label_studio: str | None = None, limit: int = 64 << 20) -> None:
        self.predictor, self.label_studio, self.limit = predictor, label_studio, limit
        self.thread, self.waiting = ThreadPoolExecutor(1), 0
        self.states: dict[str, Any] = {}  # of the supports that were posted
        self.projects: dict[str, dict[int, tuple[RGB, dict[str, NDArray[np.uint8]]]]] = {}

    async def run(self, job: Callable[..., Result], *args: Any) -> Result:
        """Do a job in its turn; BusyError where too many wait."""
        if self.waiting >= MAX_WAITING:
            raise BusyError
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, job, *args)
        finally:
            self.waiting -= 1

    def set_support(self, request: SupportRequest) -> list[str]:
        """Take supports; those before stay if there is a mistake in them."""
        classes = {
            name: ([_open(_decode(shot.image)) for shot in shots], [io.BytesIO(_decode(shot.mask)) for shot in shots])
            for name, shots in request.classes.items()
        }
        self.predictor.set_support(classes)
        self.states = self.predictor.states
        return list(classes)

    def segment(self, data: bytes) -> Prediction:
        """What is in an image's file."""
        if not self.states:
            raise UserError("no support is set; post one to /support first")
        self.predictor.states = self.states
        return self.predictor.predict(_open(data))

    def learn(self, event: Event) -> None:
        """Keep an annotated image of a project, or forget it."""
        if event.project is None or event.task is None:
            return
        shots = self.projects.setdefault(str(event.project.id), {})
        shots.pop(event.task.id, None)
        if event.annotation is None or event.action not in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
            return
        image = self._fetch(event.task, find_control(event.project.label_config).key)
        if masks := annotation_masks(event.annotation.result, image.shape[:2]):
            shots[event.task.id] = image, masks
        while len(shots) > MAX_SHOTS:
            shots.pop(next(iter(shots)))

    def label(self, request: PredictRequest) -> list[dict[str, Any]]:
        """Predictions for tasks from what their project has shown so far; empty ones before that."""
        control = find_control(request.label_config)
        shots = self.projects.get(request.project.split(".")[0], {}).values()
        support: dict[str, tuple[list[Any], list[Any]]] = {}
        for image, masks in shots:
            for label in control.labels:
                if label in masks:
                    images, shown = support.setdefault(label, ([], []))
                    images.append(image)
                    shown.append(masks[label])
        if not support:
            return [{"result": [], "score": 0.0} for _ in request.tasks]
        self.predictor.set_support(support)
        found = [self.predictor.predict(self._fetch(task, control.key)) for task in request.tasks]
        return [{"result": as_result(each, control), "score": each.score} for each in found]

    def _fetch(self, task: Task, key: str) -> RGB:
        """A task's image, which lies on Label Studio's own machine or in the task itself."""
        address = str(task.data.get(key, ""))
        if address.startswith("data:"):
            return _open(_decode(address.partition(",")[2]))
        url = urljoin(self.label_studio or "", address)
        if self.label_studio is None or urlsplit(url)[:2] != urlsplit(self.label_studio)[:2]:
            raise UserError(f"{address[:200]}: lies on no machine that --label-studio names")
        key = os.environ.get("LABEL_STUDIO_API_KEY", "")
        request = urllib.request.Request(url, headers={"Authorization": f"Token {key}"})
        try:
            with urllib.request.build_opener(NoRedirect).open(request, timeout=TIMEOUT) as answer:
                return _open(answer.read(self.limit))
        except (urllib.error.URLError, TimeoutError) as error:
            raise UserError(f"{url}: {first_line(error)}; check LABEL_STUDIO_API_KEY") from None


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for one machine only."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UserError(f"no base64 ({error})") from None


def _open(data: bytes) -> RGB:
    source = io.BytesIO(data)
    source.name = "the image"
    return read_image(source, max_megapixels=MAX_MEGAPIXELS)


def as_objects(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON: its objects with their outlines."""
    scores = object_scores(prediction.mask, prediction.class_probabilities)
    each = {value: iter(known) for value, known in scores.items()}
    objects = []
    for item in find_objects(prediction.mask):
        points = (single_outline(item.region()) + item.box[:2]).tolist()
        known = {"class": prediction.names[item.value - 1], "score": next(each[item.value]), "area": item.area}
        objects.append({**known, "box": item.box, "polygon": points})
    height, width = prediction.mask.shape
    return {"width": width, "height": height, "objects": objects}

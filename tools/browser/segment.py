"""The page Segment: what is done with supports and queries, and what is shown of it."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.benchmarks.table import open_benchmark
from dataset.episode import draw_seeded, wanted_classes
from dataset.index import load_index
from dataset.lists import class_lines
from prediction.evidence import gather_evidence
from prediction.manifest import Records, write_manifest
from prediction.outputs import Outputs, output_names
from prediction.predictor import Predictor
from tools.browser.state import VIEW_SIDE, Answer, Limits, Session, named, read_upload, safe_name
from util.config import Config
from util.errors import UserError
from util.files import atomic_write
from util.image import RGB, read_image
from util.visualize import draw_contour, fit, overlay

VIEWS = ("overlay", "contour", "probability", "prior")
EXAMPLE_QUERIES = 6


def answer_queries(
    session: Session, predictor: Predictor, paths: Sequence[str], limits: Limits
) -> Iterator[Answer | UserError]:
    """Look for the session's classes in every image; what cannot be read comes back as its error, in its turn.

    `predictor` is this session's own, though its network and memory are shared. Raises UserError before the first
    image if the supports are incomplete, or if there are no images or too many.
    """
    support = session.support()
    if not paths:
        raise UserError("there is no image to search; drop some on the right")
    if len(paths) > limits.queries:
        raise UserError(f"{len(paths)} images to search, and at most {limits.queries} are taken; remove some")
    predictor.set_support(support)
    taken: set[str] = set()
    for path in paths:
        start = perf_counter()
        try:
            picture = read_upload(path, limits)
        except UserError as error:
            yield error
            continue
        name = safe_name(path, taken)
        taken.add(name)
        evidence = gather_evidence(predictor, picture)
        view = fit(picture, VIEW_SIDE, VIEW_SIDE)
        height, width = picture.shape[:2]
        yield Answer(name, Path(path), view, (height, width), support, evidence, perf_counter() - start)


def draw_answer(predictor: Predictor, answer: Answer, view: str, threshold: float) -> RGB:
    """One of VIEWS of an answer; nothing is computed by the network."""
    if view == "prior":
        return heat(next(iter(answer.evidence.maps.values())).amax(0).numpy(), answer.view)
    prediction = answer.prediction(predictor, threshold, answer.view.shape[:2])
    if view == "probability":
        drawn = heat(prediction.probability, answer.view)
        draw_contour(drawn, prediction.mask > 0, (255, 255, 255))
        return drawn
    return overlay(answer.view, prediction.mask, alpha=0.5 if view == "overlay" else 0)


def describe_answer(predictor: Predictor, answer: Answer, threshold: float) -> str:
    """A line below a result: its name, the classes that were found with their scores, and the seconds it took."""
    found = answer.prediction(predictor, threshold, answer.view.shape[:2]).found()
    classes = ", ".join(f"{item.name} {item.score:.2f}" for item in found) or "nothing found"
    return f"{answer.name}: {classes} ({answer.seconds:.1f}\u00a0s)"


def heat(values: NDArray[np.floating], picture: RGB) -> RGB:
    """A map (f, f) with values in [0, 1] over an image, from dark blue to yellow."""
    large = cv2.resize(values.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap(np.rint(large.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.ascontiguousarray(np.rint(0.8 * colors + 0.2 * picture).astype(np.uint8))


def write_zip(session: Session, predictor: Predictor, threshold: float, folder: Path) -> Path:
    """All masks and overlays as `predict.py` writes them, with classes.txt and the manifest, in one archive.

    Masks and overlays have the images' own sizes. Raises UserError if nothing was segmented yet.
    """
    if not session.answers:
        raise UserError("nothing is segmented yet; there is nothing to download")
    values = {name: number for number, name in enumerate(session.answers[0].evidence.names, 1)}
    with TemporaryDirectory(dir=folder) as place:
        outputs = Outputs(Path(place), output_names(answer.name for answer in session.answers))
        records: Records = {}
        for answer in session.answers:
            with named(answer.path, answer.name):
                picture = read_image(answer.path)
            prediction = answer.prediction(predictor, threshold, answer.size)
            records[answer.name] = outputs.write(answer.name, picture, prediction, values, answer.seconds)
        write_manifest(Path(place), records)
        atomic_write(Path(place, "classes.txt"), class_lines({value: name for name, value in values.items()}))
        return Path(shutil.make_archive(f"{place}-segmented", "zip", place))


class Examples:
    """Supports and queries of the data set that the network was trained for, of classes that no training saw.

    Raises UserError where the data set is not there.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.names = cfg, open_benchmark(cfg).names()
        self.index, self.files = load_index(cfg, "val")

    def show(self, session: Session, limits: Limits, folder: Path) -> list[str]:
        """Give the session another example's supports in place of its own, and return images to search: copies."""
        episode = draw_seeded(self.index, self.cfg.shot, self.cfg.seeds[0], session.examples)
        session.examples += 1
        session.shots = []
        for name in episode.support:
            picture, mask = self.files.image(name), self.files.read(name, episode.class_id)
            label, of = self.files[name][0].name, self.names[episode.class_id]
            session.add_shot(label, picture, limits, mask, of)
        others = [
            image
            for image in self.index.images
            if episode.class_id in wanted_classes(self.index, image) and image not in (episode.query, *episode.support)
        ]
        queries = [episode.query, *others[: EXAMPLE_QUERIES - 1]]
        place = mkdtemp(dir=folder)
        return [shutil.copy(self.files[image][0], place) for image in queries]

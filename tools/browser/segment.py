"""What is done with a tab's supports: looking for the objects in images, drawing and explaining what was found."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter

import numpy as np

from dataset.benchmarks.table import open_benchmark
from dataset.episode import draw_seeded, wanted_classes
from dataset.index import load_index
from prediction.evidence import gather_evidence
from prediction.predictor import Prediction, Predictor
from tools.browser.session import ORDERS, Answer, Card, Choice, Session, read_upload, thumbnail
from util.config import Config
from util.errors import UserError
from util.image import RGB
from util.visualize import draw_contour, fit, heat, mosaic, overlay

VIEW_SIDE = 640  # of a result among others
EXAMPLE_QUERIES = 6


def answer_queries(session: Session, predictor: Predictor, paths: Sequence[str]) -> Iterator[Answer | UserError]:
    """Look for the session's classes in every image; what cannot be read comes back as its error, in its turn.

    `predictor` is this session's own. Raises UserError where supports are incomplete, and for no image or too many.
    """
    support, most = session.support(), session.limits.queries
    if not paths:
        raise UserError("there is no image to search; drop some on the right")
    if len(paths) > most:
        raise UserError(f"{len(paths)} images to search, and at most {most} are taken; remove some")
    predictor.set_support(support)
    session.asked = session.state()
    for path in paths:
        start = perf_counter()
        try:
            image = read_upload(path, session.limits)
        except UserError as error:
            yield error
            continue
        evidence, view = gather_evidence(predictor, image), fit(image, VIEW_SIDE, VIEW_SIDE)
        yield Answer(Path(path), view, support, evidence, perf_counter() - start, predictor)


def draw_answers(answers: Sequence[Answer], choice: Choice) -> tuple[list[Answer], list[Card], int]:
    """All answers in the order that is chosen, each drawn, and in how many something is found.

    Nothing is computed by the network.
    """
    found = [(answer, answer.prediction(choice.threshold, answer.view)) for answer in answers]
    found.sort(key=lambda pair: ORDERS[choice.order](pair[1]))
    cards = [draw_answer(answer, prediction, choice.view, answer.view) for answer, prediction in found]
    return [answer for answer, _ in found], cards, sum(prediction.is_found for _, prediction in found)


def draw_answer(answer: Answer, prediction: Prediction, view: str, image: RGB) -> Card:
    """One of VIEWS over the image, and a line: its name, the classes found with their scores, the seconds it took."""
    drawn = image
    if view == "first map":
        drawn = heat(next(iter(answer.evidence.maps.values())).amax(0).numpy(), image)
    elif view == "probability":
        drawn = heat(prediction.probability, image)
        draw_contour(drawn, prediction.mask > 0, (255, 255, 255))
    elif view != "original":
        drawn = overlay(image, prediction.mask, alpha=0.5 if view == "overlay" else 0)
    classes = ", ".join(f"{item.name} {item.score:.2f}" for item in prediction.found()) or "not found"
    return drawn, f"{answer.path.name}: {classes} ({answer.seconds:.1f}\u00a0s)"


def explain_answer(answer: Answer, class_name: str) -> list[Card]:
    """Supports with masks, query, result, and the maps by which the method explains it, each with its caption.

    Nothing is computed by the network.
    """
    evidence, view = answer.evidence, answer.view
    place = evidence.names.index(class_name)
    supports = zip(*answer.support[class_name], strict=True)
    shots = [thumbnail(image, mask, place + 1, VIEW_SIDE) for image, mask in supports]
    result = answer.prediction(0.5, view).mask == place + 1
    shown = [
        (mosaic(shots, view.shape[0]), f"{len(shots)} supports" if len(shots) > 1 else "support"),
        (view, "query"),
        (overlay(view, np.where(result, place + 1, 0)), "result"),
    ]
    for caption, maps in evidence.maps.items():
        values = maps[place].numpy()
        is_unit = values.min() >= 0 and values.max() <= 1
        low, high = (0, 1) if is_unit else (values.min(), values.max())
        shown.append((heat((values - low) / (high - low), view), f"{caption} ({low:.3g} to {high:.3g})"))
    return shown


def show_example(cfg: Config, session: Session, folder: Path) -> list[str]:
    """Put an episode's supports in place of the session's own; returns copies of images to search.

    They come from the data set that the network was trained for, of a class that no training saw. Raises UserError
    where the data set is not there.
    """
    names, (index, files) = open_benchmark(cfg).names(), load_index(cfg, "val")
    episode = draw_seeded(index, cfg.shot, cfg.seeds[0], session.counter)
    wanted, chosen = episode.class_id, (episode.query, *episode.support)
    session.remove_all()
    for image in episode.support:
        session.add_shot(files[image][0], files.image(image), files.read(image, wanted), names[wanted])
    others = [image for image in index.images if image not in chosen and wanted in wanted_classes(index, image)]
    place = mkdtemp(dir=folder)
    return [shutil.copy(files[image][0], place) for image in (episode.query, *others[: EXAMPLE_QUERIES - 1])]

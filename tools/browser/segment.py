"""What is done with a tab's supports: looking for the objects in images, drawing and explaining what was found."""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import TypeVar

from dataset.benchmarks.table import open_benchmark
from dataset.episode import draw_seeded, wanted_classes
from dataset.index import load_index
from prediction.evidence import gather_evidence
from prediction.expectation import expect, leave_out, lines
from prediction.predictor import Prediction, Predictor
from tools.browser.session import ORDERS, Answer, Card, Choice, Session, read_upload, thumbnail
from util.config import Config
from util.errors import UserError
from util.image import RGB, read_image
from util.visualize import draw_contour, fit, heat, mosaic, overlay

Kept = TypeVar("Kept")

VIEW_SIDE = 640  # of a result among others
EXAMPLE_QUERIES = 6


def answer_queries(session: Session, predictor: Predictor, paths: Sequence[str]) -> Iterator[UserError | None]:
    """Look for the session's classes in every image, whose answer it then has; an error for what cannot be read.

    Raises UserError where supports are incomplete, and for no image or too many.
    """
    support, most, predictor = session.support(), session.limits.queries, copy.copy(predictor)
    if not paths:
        raise UserError("there is no image to search; drop some on the right")
    if len(paths) > most:
        raise UserError(f"{len(paths)} images to search, and at most {most} are taken; remove some")
    predictor.set_support({item.name: (item.images, item.masks) for item in support})
    if session.asked != session.state():
        session.asked, session.expected = session.state(), ""
    begin = perf_counter()
    for number, path in enumerate(paths, 1):
        start, error = perf_counter(), None
        try:
            image = read_upload(path, session.limits)
            evidence, view = gather_evidence(predictor, image), fit(image, VIEW_SIDE, VIEW_SIDE)
            session.answers.append(Answer(Path(path), view, support, evidence, perf_counter() - start, predictor))
        except UserError as unread:
            error = unread
        left = (perf_counter() - begin) / number * (len(paths) - number)
        session.progress = f"{number} of {len(paths)} images, {left:.0f} s left"
        yield error


def expect_iou(session: Session, predictor: Predictor) -> list[str]:
    """Note the IoU to be expected, every support segmented by the others; lines on masks that disagree with them.

    Nothing where no class has two supports, or where it is known.
    """
    if session.expected or not (trials := leave_out(copy.copy(predictor), session.support())):
        return []
    session.expected, *disagreeing = lines({"": expect(trials)}, "")
    return disagreeing


def draw_answers(session: Session, keep: Callable[[Card], Kept]) -> list[Kept]:
    """What is kept of each answer's drawing, in the order that is chosen, which the session then shows and counts.

    Nothing is computed by the network, and no drawing stays in memory.
    """
    choice, drawn = session.choice, []
    for answer in session.answers:
        prediction = answer.prediction(choice.threshold, answer.view)
        kept = keep(draw_answer(answer, choice, answer.view, prediction))
        drawn.append((ORDERS[choice.order](prediction), prediction.is_found, answer, kept))
    drawn.sort(key=lambda item: item[0])
    session.shown = [answer for _, _, answer, _ in drawn]
    session.status = f"{len(drawn)} images, found in {sum(item[1] for item in drawn)}" if drawn else ""
    return [kept for *_, kept in drawn]


def draw_answer(answer: Answer, choice: Choice, image: RGB, prediction: Prediction | None = None) -> Card:
    """What is chosen over the image, and a line: its name, the classes found with their scores, the seconds it took."""
    prediction, view, drawn = prediction or answer.prediction(choice.threshold, image), choice.view, image
    if view == "first map":
        drawn = heat(next(iter(answer.evidence.maps.values())).amax(0).numpy(), image)
    elif view == "probability":
        drawn = heat(prediction.probability, image)
        draw_contour(drawn, prediction.mask > 0, (255, 255, 255))
    elif view != "original":
        drawn = overlay(image, prediction.mask, alpha=0.5 if view == "overlay" else 0)
    classes = ", ".join(f"{item.name} {item.score:.2f}" for item in prediction.found()) or "not found"
    return drawn, f"{answer.path.name}: {classes} ({answer.seconds:.1f}\u00a0s)"


def explain_answer(answer: Answer, place: int) -> list[Card]:
    """Supports of one class with masks, query, result, and the maps by which the method explains it, with captions.

    Nothing is computed by the network.
    """
    view, (_, value, images, masks) = answer.view, answer.support[place]
    shots = [thumbnail(read_image(image), mask, value, VIEW_SIDE) for image, mask in zip(images, masks, strict=True)]
    result = answer.prediction(0.5, view).mask == value
    shown = [
        (mosaic(shots, view.shape[0]), f"{len(shots)} supports" if len(shots) > 1 else "support"),
        (view, "query"),
        (overlay(view, value * result), "result"),
    ]
    for caption, maps in answer.evidence.maps.items():
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
    session.remove(session.shots)
    for image in episode.support:
        session.add_shot(files[image][0], files.image(image), files.read(image, wanted), names[wanted])
    others = [image for image in index.images if image not in chosen and wanted in wanted_classes(index, image)]
    place = mkdtemp(dir=folder)
    return [shutil.copy(files[image][0], place) for image in (episode.query, *others[: EXAMPLE_QUERIES - 1])]

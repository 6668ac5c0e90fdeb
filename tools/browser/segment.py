"""What is done with a tab's supports: looking for the objects in images, drawing and explaining what was found."""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter

from dataset.benchmarks.table import open_benchmark
from dataset.episode import draw_seeded, wanted_classes
from dataset.index import load_index
from prediction.evidence import gather_evidence
from prediction.expectation import expect, leave_out, lines
from prediction.predictor import Predictor
from tools.browser.session import ORDERS, Answer, Card, Choice, Session, draw_support
from util.config import Config
from util.errors import UserError
from util.image import RGB, read_image
from util.visualize import fit, mosaic, overlay

Save = Callable[[RGB], str]  # keeps a drawing as a file, so that none stays in memory

VIEW_SIDE = 640  # of a result among others
EXAMPLE_QUERIES = 6


def answer_queries(
    session: Session, predictor: Predictor, paths: Sequence[str], save: Save
) -> Iterator[UserError | None]:
    """Look for the session's classes in every image, whose answer it then has; an error for what cannot be read.

    Ends where the session has another list of answers meanwhile, as `Stop` gives it. Raises UserError where supports
    are incomplete, and for no image or too many.
    """
    support, limits, predictor = session.support(), session.limits, copy.copy(predictor)
    if not paths:
        raise UserError("there is no image to search; drop some on the right")
    if len(paths) > limits.queries:
        raise UserError(f"{len(paths)} images to search, and at most {limits.queries} are taken; remove some")
    predictor.set_support({item.name: (item.images, item.masks) for item in support})
    if session.asked != session.state():
        session.asked, session.expected = session.state(), ""
    begin, answers = perf_counter(), session.answers
    for number, path in enumerate(paths, 1):
        start, error = perf_counter(), None
        try:
            image = read_image(path, max_megapixels=limits.megapixels)
            evidence, view = gather_evidence(predictor, image), fit(image, VIEW_SIDE, VIEW_SIDE)
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            found = Answer(Path(path), size, view, support, evidence, perf_counter() - start)
            answers.append(found)
            draw_card(found, session.choice, save)
        except UserError as unread:
            error = unread
        if session.answers is not answers:
            return
        session.shown = answers  # in this order until all are there
        left = (perf_counter() - begin) / number * (len(paths) - number)
        session.status = f"{number} of {len(paths)} images, {left:.0f} s left"
        yield error


def expect_iou(session: Session, predictor: Predictor) -> list[str]:
    """Note the IoU to be expected, every support segmented by the others; lines on masks that disagree with them.

    Nothing where no class has two supports, or where it is known.
    """
    if session.expected or not (trials := leave_out(copy.copy(predictor), session.support())):
        return []
    session.expected, *disagreeing = lines({"": expect(trials)}, "")
    return disagreeing


def draw_answers(session: Session, save: Save) -> None:
    """Draw all answers anew, sort and count them, as the session's choice says; the network computes nothing."""
    for answer in session.answers:
        draw_card(answer, session.choice, save)
    session.shown = sorted(session.answers, key=lambda answer: answer.rank)
    found = sum(answer.is_found for answer in session.answers)
    session.status = f"{len(session.answers)} images, found in {found}" if session.answers else ""


def draw_card(answer: Answer, choice: Choice, save: Save) -> None:
    """Draw an answer as it is shown among others: its classes with their scores, its seconds, and its rank there."""
    prediction = answer.evidence.prediction(choice.threshold, answer.view)
    classes = ", ".join(f"{item.name} {item.score:.2f}" for item in prediction.found()) or "not found"
    text = f"{answer.path.name}: {classes} ({answer.seconds:.1f}\u00a0s)"
    answer.card = save(answer.evidence.draw(choice.view, prediction, answer.view)), text
    answer.line = f"{text}, {answer.size}"
    answer.rank, answer.is_found = ORDERS[choice.order](prediction), prediction.is_found


def draw_opened(answer: Answer, choice: Choice) -> tuple[RGB, RGB]:
    """An answer's image at its own size, and what is chosen to be shown of the result."""
    image = read_image(answer.path)
    return image, answer.evidence.draw(choice.view, answer.evidence.prediction(choice.threshold, image), image)


def explain_answer(answer: Answer, place: int) -> list[Card]:
    """Supports of one class with masks, query, result, and the maps by which the method explains it, with captions.

    Nothing is computed by the network.
    """
    view, (_, value, images, masks) = answer.view, answer.support[place]
    shots = [draw_support(read_image(image), mask, value, VIEW_SIDE) for image, mask in zip(images, masks, strict=True)]
    result = answer.evidence.prediction(0.5, view).mask == value
    about = f"{len(shots)} supports" if len(shots) > 1 else "support"
    shown = [(mosaic(shots, view.shape[0]), about), (view, "query"), (overlay(view, value * result), "result")]
    return shown + answer.evidence.draw_maps(place, view)


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

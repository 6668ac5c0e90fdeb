import copy
import json
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.build import build_model
from prediction.choice import Source
from prediction.evidence import VIEWS
from prediction.manifest import read_manifest
from prediction.predictor import Prediction, Predictor
from tests.tools.browser.tab import scene
from tools.browser.answer import Display
from tools.browser.download import open_example, write_zip
from tools.browser.session import Network, Session
from util.config import Config
from util.errors import UserError
from util.image import RGB, read_image, resize_mask


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Two classes, the second with two images."""
    session = Session()
    for number, of in enumerate(("cat", "dog", "dog"), 3):
        mask = scene(tmp_path / f"support{number}.png", class_id=number)
        session.add_shot(tmp_path / f"support{number}.png", read_image(tmp_path / f"support{number}.png"), mask, of)
    return session


def write_queries(folder: Path) -> list[str]:
    folder.mkdir()
    for number, size in enumerate(((60, 80), (90, 50), (33, 33))):
        scene(folder / f"{number}.png", *size)
    return [str(folder / f"{number}.png") for number in range(3)]


def save(image: RGB) -> str:
    return f"{image.shape[1]}x{image.shape[0]}.jpg"


def answer_all(session: Session, predictor: Predictor, paths: list[str]) -> list[str]:
    """Answers go into the session; returns complaints."""
    session.answers = []
    return [str(error) for error in session.search(predictor, paths, save) if error]


def test_the_download_is_what_the_command_writes(
    session: Session, experiment: tuple[Config, Path], predictor: Predictor, tmp_path: Path
) -> None:
    predictor.sharpens = True  # as predict.yaml says
    paths = [*write_queries(tmp_path / "queries"), str(tmp_path / "queries/b\u00e4r im Wald.png")]
    scene(Path(paths[-1]))
    assert not answer_all(session, predictor, paths)
    session.set_class("dog")  # as it was
    session.display = Display(threshold=0.4)
    archive = write_zip(
        session, Network(Source(*experiment, is_usual=False), predictor, ""), ["coco", "labelme", "csv"], tmp_path
    )
    assert archive.name == f"cat_dog_{date.today()}.zip"
    out = tmp_path / "out"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(out)
    alone = Predictor(predictor.model, predictor.size, predictor.shot, predictor.device, sharpens=True)
    alone.set_support({item.name: (item.images, item.masks) for item in session.support()})
    records = read_manifest(out)
    assert sorted(records) == ["0.png", "1.png", "2.png", "b\u00e4r im Wald.png"]
    assert (out / "classes.txt").read_text() == "1 cat\n2 dog\n"
    settings = json.loads((out / "run.json").read_text())
    assert settings["threshold"] == 0.4 and settings["images"] == 4 and "b\u00e4r" in (out / "index.html").read_text()
    assert (out / "coco.json").is_file() and (out / "objects.csv").is_file()
    assert settings["files"] == [Path(path).name for path in paths]
    named = {path.stem: json.loads(path.read_text())["imagePath"] for path in out.glob("labelme/*.json")}
    assert {Path(name).stem: name for name in settings["files"]} == named
    texts = [path for path in out.rglob("*") if path.suffix in (".json", ".jsonl", ".csv", ".html", ".txt")]
    assert len(texts) == 10 and not [path for path in texts if str(tmp_path) in path.read_text()]
    for path in paths:
        expected = alone.predict(path).at(0.4)
        stem = Path(path).stem
        assert (np.asarray(Image.open(out / f"masks/{stem}.png")) == expected.mask).mean() > 0.99
        assert (out / f"overlays/{stem}.jpg").is_file()
        named = {record["class"]: record["area"] for record in records[Path(path).name] if record["class"]}
        assert named == pytest.approx({item.name: item.area for item in expected.found()}, rel=0.05, abs=10)


def test_a_late_step_of_a_stopped_search_changes_nothing_that_is_said_of_it(
    session: Session, predictor: Predictor, tmp_path: Path
) -> None:
    steps = session.search(predictor, write_queries(tmp_path / "queries"), save)
    next(steps)
    assert session.status.startswith("1 of 3 images, ")
    session.stop(save)  # while the next image is on its way
    said = session.status
    assert not list(steps) and session.status == said and said.startswith("1 images, found in ")
    assert len(session.answers) == len(session.shown) == 1


def test_orders_and_what_is_stale(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    paths = write_queries(tmp_path / "queries")
    assert not answer_all(session, predictor, paths) and not session.is_stale
    alone = [answer.evidence.prediction(0.5, answer.view) for answer in session.answers]
    keys: dict[str, list[Any]] = {
        "highest score first": [-each.score for each in alone],
        "found first": [not each.found() for each in alone],
        "least sure first: label these next": [each.certainty for each in alone],
    }
    for order, key in keys.items():
        session.display = Display(order=order)
        session.draw(save)
        cards = [answer.card for answer in session.shown]
        assert [file for file, _ in cards] == [save(answer.view) for answer in session.shown]
        expected = [Path(paths[place]).name for place in sorted(range(3), key=key.__getitem__)]
        assert [text.split(":")[0] for _, text in cards] == expected
        assert session.status == f"3 images, found in {sum(map(bool, map(Prediction.found, alone)))}"
    mask = session.shots[0].mask
    session.shots[0].mask = 1 - mask
    assert session.is_stale
    session.shots[0].mask = mask.copy()
    assert not session.is_stale
    session.network = "prototype"
    assert session.is_stale


def test_views_and_threshold(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    answer_all(session, predictor, write_queries(tmp_path / "queries"))
    for answer in session.answers:
        views = [answer.draw_whole(Display(view))[1] for view in VIEWS]
        whole = read_image(answer.path)
        assert all(image.shape == whole.shape for image in views) and (views[VIEWS.index("original")] == whole).all()
        assert len({image.tobytes() for image in views}) >= 4  # nothing may be found, and then nothing is outlined
        assert answer.card[1].startswith(answer.path.name) and answer.card[1].endswith("s)")
        probability = answer.evidence.prediction(0.5, answer.view).class_probabilities
        background = 1 - probability.sum(0)
        for threshold in (0.2, 0.5, 0.8):
            best = probability.max(0)
            expected = np.where(best / (best + background) > threshold, probability.argmax(0) + 1, 0)
            close = np.abs(best / (best + background) - threshold) < 1e-5
            close |= np.abs(np.diff(probability, axis=0)[0]) < 1e-5  # of two classes either
            assert ((answer.evidence.prediction(threshold, answer.view).mask == expected) | close).mean() > 0.999


def test_explanations_show_the_maps_of_the_class(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    answer_all(session, predictor, write_queries(tmp_path / "queries"))
    answer = session.answers[1]
    for place in (0, 1):
        captions = [text for _, text in answer.explain(place)]
        assert captions[0] == ("support", "2 supports")[place]
        assert captions[1:3] == ["query", "result"]
        assert [text.split(" (")[0] for text in captions[3:]] == [text.split(" (")[0] for text in answer.evidence.maps]
        assert "prior: like the object (0 to 1)" in captions and any(
            text.startswith("QIM in block") for text in captions
        )


@pytest.mark.parametrize("name", ["prior", "prototype"])
def test_a_training_free_method_is_shown_like_a_trained_one(
    session: Session, experiment: tuple[Config, Path], tmp_path: Path, name: str
) -> None:
    model = build_model(experiment[0].model_copy(update={"arch": name}), pretrained=False)
    predictor = Predictor(model, experiment[0].val_size, 1, torch.device("cpu"))
    assert not answer_all(session, predictor, write_queries(tmp_path / "queries"))
    for answer in session.answers:
        whole = read_image(answer.path)
        assert all(answer.draw_whole(Display(view))[1].shape == whole.shape for view in VIEWS)
        captions = [text.split(" (")[0] for _, text in answer.explain(1)]
        assert captions == ["2 supports", "query", "result", *answer.evidence.maps]


def test_what_is_missing_is_said_first(
    session: Session, experiment: tuple[Config, Path], predictor: Predictor, tmp_path: Path
) -> None:
    paths = write_queries(tmp_path / "queries")
    for wrong, words in (([], "no image to search"), (paths * 40, "120 images to search, and at most 100")):
        with pytest.raises(UserError, match=words):
            list(session.search(predictor, wrong, save))
    network = Network(Source(*experiment, is_usual=False), predictor, "")
    with pytest.raises(UserError, match="nothing is segmented yet"):
        write_zip(session, network, [], tmp_path)
    assert not answer_all(session, predictor, paths)
    session.set_class("cat")
    with pytest.raises(UserError, match="supports or network have changed"):
        write_zip(session, network, [], tmp_path)
    session.shots[1].mask = np.zeros_like(session.shots[1].mask)
    with pytest.raises(UserError, match=r"support4\.png: nothing is painted"):
        list(session.search(predictor, paths, save))


def test_the_iou_that_supports_lead_one_to_expect(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    paths = write_queries(tmp_path / "queries")[:1]
    assert not answer_all(session, predictor, paths)
    session.expect(predictor)
    fresh, ious = copy.copy(predictor), []
    dogs = [shot for shot in session.shots if shot.class_name == "dog"]
    for shot, other in (dogs, dogs[::-1]):
        fresh.set_support(
            {"cat": ([session.shots[0].path], [session.shots[0].mask]), "dog": ([other.path], [other.mask])}
        )
        image = read_image(shot.path, 2 * fresh.size)
        found, truth = fresh.predict(image).mask == 2, resize_mask(shot.mask, *image.shape[:2]) == 1
        ious.append((found & truth).sum() / (found | truth).sum())
    assert session.expected.startswith("expect a mean IoU of ")
    assert float(session.expected.split()[5]) == pytest.approx(np.mean(ious), abs=0.006)
    session.remove(session.shots[:1])
    assert not answer_all(session, predictor, paths) and not session.expected  # of former supports
    session.remove(session.shots[:1])
    assert not answer_all(session, predictor, paths) and not session.expect(predictor) and not session.expected


def test_what_happens_while_supports_are_set_counts(
    session: Session, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Painting makes the results stale, and a stop ends the search."""
    paths, set_support = write_queries(tmp_path / "queries"), Predictor.set_support
    meanwhile: list[Any] = [lambda: session.shot.change(1 - session.shot.mask), lambda: session.stop(save)]

    def slow(*arguments: Any) -> None:
        set_support(*arguments)
        meanwhile.pop(0)()

    monkeypatch.setattr(Predictor, "set_support", slow)
    assert not answer_all(session, predictor, paths)
    assert len(session.answers) == 3 and session.is_stale and not session.expect(predictor) and not session.expected
    assert not answer_all(session, predictor, paths) and not session.answers and not session.status


def test_what_was_found_is_drawn_whatever_ends_a_search(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    paths = write_queries(tmp_path / "queries")
    session.answers = []
    search: Any = session.search(predictor, paths, save)
    assert next(search) is None and session.status.startswith("1 of 3 images, ")
    with pytest.raises(ZeroDivisionError):
        search.throw(ZeroDivisionError)
    assert session.status.startswith("1 images, found in ")


def test_what_is_drawn_already_is_not_drawn_again(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    drawn: list[Path] = []

    def keep(image: RGB) -> str:
        drawn.append(tmp_path / f"{len(drawn)}.jpg")
        drawn[-1].touch()
        return str(drawn[-1])

    session.answers = []
    assert not any(session.search(predictor, write_queries(tmp_path / "queries"), keep)) and len(drawn) == 3
    session.display = Display("contour")
    session.draw(keep)
    assert len(drawn) == 6
    drawn[-1].unlink()  # as after a day
    session.draw(keep)
    assert len(drawn) == 7 and session.answers[2].card[0] == str(drawn[-1])


def test_the_example_shows_what_is_to_be_found(predictor: Predictor, tmp_path: Path) -> None:
    session = Session()
    paths = open_example(session, tmp_path)
    assert all(tmp_path in Path(path).parents for path in paths)
    assert list(session.values()) == ["coin"] and 0.1 < (session.shots[0].mask == 1).mean() < 0.5
    assert not answer_all(session, predictor, paths) and len(session.answers) == 3


@pytest.mark.parametrize("name", [".hidden", "a b.jpg", "caf\u00e9 <b>.png", "same.png", "x" * 240 + ".jpg"])
def test_names_of_uploads_lead_nowhere(
    session: Session, experiment: tuple[Config, Path], predictor: Predictor, tmp_path: Path, name: str
) -> None:
    """Two images of one name are both in the download, and nothing outside of its folders."""
    paths = [tmp_path / folder / name for folder in ("one", "two")]
    for path, number in zip(paths, (3, 4), strict=True):
        path.parent.mkdir()
        scene(tmp_path / "image.png", class_id=number)
        (tmp_path / "image.png").rename(path)
    assert not answer_all(session, predictor, [str(path) for path in paths])
    network = Network(Source(*experiment, is_usual=False), predictor, "")
    with zipfile.ZipFile(write_zip(session, network, [], tmp_path)) as archive:
        files = [Path(item) for item in archive.namelist() if not item.endswith("/")]
    assert len([file for file in files if file.parent == Path("masks")]) == 2
    assert {str(file.parent) for file in files} == {".", "masks", "overlays"}

import copy
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.build import build_model
from prediction.manifest import read_manifest
from prediction.predictor import Predictor
from tests.tools.browser.conftest import scene
from tools.browser.segment import (
    VIEWS,
    Answer,
    Limits,
    Session,
    answer_queries,
    draw_answer,
    explain_answer,
    read_upload,
    show_example,
    write_zip,
)
from util.config import Config
from util.errors import UserError


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Two classes, the second with two images."""
    session = Session()
    for number, of in enumerate(("cat", "dog", "dog"), 3):
        mask = scene(tmp_path / f"support{number}.png", class_id=number)
        image = read_upload(tmp_path / f"support{number}.png", Limits())
        session.add_shot(f"support{number}.png", image, mask, of)
    return session


def write_queries(folder: Path) -> list[str]:
    folder.mkdir()
    for number, size in enumerate(((60, 80), (90, 50), (33, 33))):
        scene(folder / f"{number}.png", *size)
    return [str(folder / f"{number}.png") for number in range(3)]


def answer_all(session: Session, predictor: Predictor, paths: list[str]) -> list[str]:
    """Answers go into the session; returns complaints."""
    found = list(answer_queries(session, copy.copy(predictor), paths))
    session.answers = [answer for answer in found if isinstance(answer, Answer)]
    return [str(error) for error in found if isinstance(error, UserError)]


def test_the_download_is_what_the_predictor_finds(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    paths = write_queries(tmp_path / "queries")
    (tmp_path / "1.png").write_text("not an image")
    complaints = answer_all(session, predictor, [*paths, str(tmp_path / "1.png")])
    assert complaints == ["1.png: is not an image; take a JPEG, PNG or WebP file"]
    with zipfile.ZipFile(write_zip(session, predictor, 0.5, tmp_path)) as archive:
        archive.extractall(tmp_path / "out")
    alone = Predictor(predictor.model, predictor.size, predictor.shot, predictor.device)
    alone.set_support(session.support())
    records = read_manifest(tmp_path / "out")
    assert sorted(records) == ["0.png", "1.png", "2.png"]
    assert (tmp_path / "out/classes.txt").read_text() == "1 cat\n2 dog\n"
    for path in paths:
        expected = alone.predict(path)
        stem = Path(path).stem
        assert (np.asarray(Image.open(tmp_path / f"out/masks/{stem}.png")) == expected.mask).mean() > 0.99
        assert (tmp_path / f"out/overlays/{stem}.jpg").is_file()
        named = {record["class"]: record["area"] for record in records[Path(path).name] if record["class"]}
        assert named == pytest.approx({item.name: item.area for item in expected.found()}, rel=0.05, abs=10)


def test_views_and_threshold(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    answer_all(session, predictor, write_queries(tmp_path / "queries"))
    for answer in session.answers:
        for view in VIEWS:
            image, text = draw_answer(predictor, answer, view, 0.5)
            assert image.shape == answer.view.shape
            assert text.startswith(answer.path.name) and text.endswith("s)")
        probability = answer.prediction(predictor, 0.5, answer.size).class_probabilities
        background = 1 - probability.sum(0)
        for threshold in (0.2, 0.5, 0.8):
            best = probability.max(0)
            expected = np.where(best / (best + background) > threshold, probability.argmax(0) + 1, 0)
            close = np.abs(best / (best + background) - threshold) < 1e-5
            assert ((answer.prediction(predictor, threshold, answer.size).mask == expected) | close).all()


def test_explanations_show_the_maps_of_the_class(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    answer_all(session, predictor, write_queries(tmp_path / "queries"))
    answer = session.answers[1]
    for name in ("cat", "dog"):
        captions = [text for _, text in explain_answer(predictor, answer, name)]
        assert captions[0] == ("2 supports" if name == "dog" else "support")
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
        assert all(draw_answer(predictor, answer, view, 0.5)[0].shape == answer.view.shape for view in VIEWS)
        captions = [text.split(" (")[0] for _, text in explain_answer(predictor, answer, "dog")]
        assert captions == ["2 supports", "query", "result", *answer.evidence.maps]


def test_what_is_missing_is_said_first(session: Session, predictor: Predictor, tmp_path: Path) -> None:
    paths = write_queries(tmp_path / "queries")
    for wrong, words in (([], "no image to search"), (paths * 40, "120 images to search, and at most 100")):
        with pytest.raises(UserError, match=words):
            list(answer_queries(session, predictor, wrong))
    with pytest.raises(UserError, match="nothing to download"):
        write_zip(session, predictor, 0.5, tmp_path)
    session.shots[1].mask = np.zeros_like(session.shots[1].mask)
    with pytest.raises(UserError, match=r"support4\.png: nothing is painted"):
        list(answer_queries(session, predictor, paths))


def test_examples_are_of_a_novel_class(experiment: tuple[Config, Path], predictor: Predictor, tmp_path: Path) -> None:
    cfg, session = experiment[0], Session()
    paths = show_example(cfg, session, tmp_path)
    assert next(iter(session.values())) in ("thing1", "thing2") and len(session.shots) == cfg.shot
    assert all(tmp_path in Path(path).parents for path in paths)
    assert not answer_all(session, predictor, paths)
    names = {session.shots[0].name} | {show_example(cfg, session, tmp_path) and session.shots[0].name for _ in range(6)}
    assert len(names) > 1


@pytest.mark.parametrize("name", [".hidden", "a b.jpg", "caf\u00e9 <b>.png", "same.png", "x" * 240 + ".jpg"])
def test_names_of_uploads_lead_nowhere(session: Session, predictor: Predictor, tmp_path: Path, name: str) -> None:
    """Two images of one name are both in the download, and nothing outside of its folders."""
    paths = [tmp_path / folder / name for folder in ("one", "two")]
    for path, number in zip(paths, (3, 4), strict=True):
        path.parent.mkdir()
        scene(tmp_path / "image.png", class_id=number)
        (tmp_path / "image.png").rename(path)
    assert not answer_all(session, predictor, [str(path) for path in paths])
    with zipfile.ZipFile(write_zip(session, predictor, 0.5, tmp_path)) as archive:
        files = [Path(item) for item in archive.namelist() if not item.endswith("/")]
    assert len([file for file in files if file.parent == Path("masks")]) == 2
    assert {str(file.parent) for file in files} == {".", "masks", "overlays"}

import base64
import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prediction.clicks import STEPS
from tests.tools.browser.tab import scene
from tests.toy import generator
from tools.browser.answer import Display
from tools.browser.download import SESSION, open_session, save_session
from tools.browser.session import CANVAS_SIDE, Limits, Session
from util.errors import UserError

PNG = "data:image/png;base64,"
IMAGE = np.zeros((40, 50, 3), np.uint8)


def test_supports_by_class_in_the_order_in_which_they_came() -> None:
    session = Session()
    for name, of in (("a", "dog"), ("b", "cat"), ("c", "")):
        session.add_shot(name, IMAGE, np.ones((40, 50), np.uint8), of)
    assert session.shot.path.name == "c" and session.shot.class_name == "cat"  # as the one before it
    assert session.values() == {"dog": 1, "cat": 2} and [text for _, text in session.cards()] == [
        "dog: a",
        "cat: b",
        "cat: c",
    ]
    assert {item.name: len(item.images) for item in session.support()} == {"dog": 1, "cat": 2}
    session.remove([session.shot])
    assert session.shot.path.name == "b"
    session.remove([session.shot])
    session.remove([session.shot])
    assert session.shot is None and not session.cards()
    with pytest.raises(UserError, match="no support image yet"):
        session.support()


def test_a_image_without_an_object_and_one_too_many_are_named() -> None:
    session = Session(Limits(supports=1))
    session.add_shot("cat.jpg", IMAGE)
    with pytest.raises(UserError, match=r"cat\.jpg: nothing is painted"):
        session.support()
    with pytest.raises(UserError, match=r"dog\.jpg: at most 1 support images are taken; remove one"):
        session.add_shot("dog.jpg", IMAGE)


def test_uploads_that_are_no_image_too_large_or_damaged(tmp_path: Path) -> None:
    session = Session()
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("1", (10000, 10000)).save(tmp_path / "large.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    scene(tmp_path / "whole.png", 40, 50)
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:999])
    for name, words in (
        ("text.jpg", "it is no image"),
        ("large.png", "10000x10000 are 100 megapixels, and at most 50"),
        ("bomb.png", "has more than 178 megapixels"),
        ("half.png", "not a readable image"),
    ):
        with warnings.catch_warnings(), pytest.raises(UserError, match=f"^{name}: .*{words}") as caught:
            warnings.simplefilter("ignore")  # Pillow's of the large ones
            session.add_file(str(tmp_path / name))
        assert str(tmp_path) not in str(caught.value)
    assert not session.shots
    session.add_file(str(tmp_path / "whole.png"))
    assert session.shot.image.shape == (40, 50, 3)


def test_masks_from_files(tmp_path: Path) -> None:
    session = Session()
    mask = scene(tmp_path / "image.jpg")
    session.add_file(str(tmp_path / "image.jpg"))
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    session.read_mask(str(tmp_path / "mask.png"))
    assert (session.shot.mask == mask).all()
    Image.fromarray(mask[:, :30] * 255).save(tmp_path / "narrow.png")
    with pytest.raises(UserError, match=r"image\.jpg: is 80x60 as shown, but its mask is 30x60"):
        session.read_mask(str(tmp_path / "narrow.png"))
    other = mask.copy()
    other[:9, :9] = 7
    Image.fromarray(other).save(tmp_path / "two.png")
    with pytest.raises(UserError, match=r"^two\.png: marks 2 classes; give a mask of the one object, white on black$"):
        session.read_mask(str(tmp_path / "two.png"))
    with pytest.raises(
        UserError, match=r"^image\.jpg: a mask in [^;]*; give a mask of the one object, white on black$"
    ):
        session.read_mask(str(tmp_path / "image.jpg"))
    assert (session.shot.mask == mask).all()


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_what_the_canvas_shows_comes_back_as_it_was() -> None:
    session = Session()
    assert session.canvas() is None
    mask = generator().integers(0, 2, (40, 50)).astype(np.uint8)
    session.add_shot("a", IMAGE, mask)
    shown = session.canvas()
    assert opened(shown["image"]).size == opened(shown["ink"]).size == (50, 40)
    session.shot.mask = np.zeros_like(mask)
    session.read_painting(shown)  # not painted on: nothing to take over
    assert not session.shot.mask.any()
    session.read_painting({"shot": shown["shot"], "ink": shown["ink"]})
    assert (session.shot.mask == mask).all()


def test_a_large_image_is_painted_on_reduced() -> None:
    session = Session()
    mask = np.zeros((3000, 1000), np.uint8)
    mask[1500:] = 1
    session.add_shot("a", np.zeros((3000, 1000, 3), np.uint8), mask)
    shown = session.canvas()
    assert max(opened(shown["ink"]).size) == CANVAS_SIDE
    session.read_painting({"shot": 1, "ink": shown["ink"]})
    assert session.shot.mask.shape == mask.shape and (session.shot.mask != mask).mean() < 0.002


def test_of_a_removed_image_and_torn_ones() -> None:
    session = Session()
    session.add_shot("a", IMAGE)
    session.read_painting({"shot": 99, "ink": "whatever"})
    buffer = io.BytesIO()
    Image.new("RGBA", (3, 3)).save(buffer, "PNG")
    small = PNG + base64.b64encode(buffer.getvalue()).decode()
    for ink in (None, "data:,", PNG + "AAAA", small):
        with pytest.raises(UserError, match="did not arrive whole"):
            session.read_painting({"shot": 1, "ink": ink})


def test_undo_and_redo_of_a_few_steps() -> None:
    session = Session()
    session.add_shot("a", IMAGE)
    shot = session.shot
    shot.step(-1)  # nothing is there yet
    masks = [np.full((40, 50), step % 2, np.uint8) * (np.arange(50) < step).astype(np.uint8) for step in range(25)]
    for mask in masks[1:]:
        shot.change(mask)
    for by, step in ((-1, 23), (-1, 22), (1, 23)):
        shot.step(by)
        assert (shot.mask == masks[step]).all()
    shot.change(0 * shot.mask)
    shot.step(1)  # what was undone is gone
    assert not shot.mask.any()
    for _ in range(40):
        shot.step(-1)
    assert (shot.mask == masks[24 - STEPS]).all()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Session, Path]:
    """A session of two supports, one with an ignored pixel and one not painted, and its file."""
    session = Session(network="prior", display=Display("contour", 0.3, "found first"))
    for name in ("b\u00e4r <1>.png", "s.jpg"):
        scene(tmp_path / name, 40, 50)
        session.add_file(str(tmp_path / name))
        session.set_class("d/og" if name == "s.jpg" else "cat")
    session.shots[0].mask[:9] = 1
    session.shots[0].mask[0, 0] = 255
    return session, save_session(session, tmp_path)


def test_a_session_comes_back_as_it_was(saved: tuple[Session, Path]) -> None:
    session, path = saved
    again = Session(network="adapt")
    assert open_session(again, str(path)) == "prior" and again.network == "adapt"
    assert again.display == session.display and again.values() == {"cat": 1, "d/og": 2}
    for one, other in zip(again.shots, session.shots, strict=True):
        assert (
            (one.mask == other.mask).all() and (one.image == other.image).all() and one.class_name == other.class_name
        )
        assert one.path.name == other.path.name and one.path.read_bytes() == other.path.read_bytes()
    with pytest.raises(UserError, match="nothing to save"):
        save_session(Session(), path.parent)
    session.shots[0].path.unlink()
    with pytest.raises(UserError, match="no longer there; add it again"):
        save_session(session, path.parent)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"view": "upside down"}, "is no session, or damaged"),
        ({"threshold": "half"}, "is no session, or damaged"),
        ({"supports": []}, "is no session, or damaged"),
        ({"supports": [{"class": "cat", "image": "../../s.jpg"}]}, "s.jpg"),
        ({"supports": [{"class": " ", "image": "b\u00e4r <1>.png"}]}, "is no session, or damaged"),
    ],
)
def test_a_damaged_session_changes_nothing(
    saved: tuple[Session, Path], wrong: dict[str, object], words: str, tmp_path: Path
) -> None:
    session, path = saved
    before, damaged = list(session.shots), tmp_path / "damaged.zip"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            new.writestr(name, json.dumps(json.loads(old.read(name)) | wrong) if name == SESSION else old.read(name))
    with pytest.raises(UserError, match=words):
        open_session(session, str(damaged))
    damaged.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"^damaged\.zip: is no session, or damaged"):
        open_session(session, str(damaged))
    with pytest.raises(UserError, match="holds more than 20 images can take"):
        open_session(Session(Limits(megapixels=1e-6)), str(path))
    assert session.shots == before

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.browser.conftest import scene
from tools.browser.state import Limits, Session, read_painted, read_upload, safe_name
from util.errors import UserError

PICTURE = np.zeros((40, 50, 3), np.uint8)


def test_supports_by_class_in_the_order_in_which_they_came() -> None:
    session = Session()
    for name, of in (("a", "dog"), ("b", "cat"), ("c", "")):
        session.add_shot(name, PICTURE, Limits(), np.ones((40, 50), np.uint8), of)
    assert session.shot.name == "c" and session.shot.class_name == "cat"  # as the one before it
    assert session.class_names == ["dog", "cat"] and [session.value(name) for name in ("dog", "cat")] == [1, 2]
    assert {name: len(images) for name, (images, _) in session.support().items()} == {"dog": 1, "cat": 2}
    session.remove_shot()
    assert session.shot.name == "b"
    session.remove_shot()
    session.remove_shot()
    assert session.shot is None and session.current is None
    with pytest.raises(UserError, match="no support image yet"):
        session.support()


def test_a_image_without_an_object_and_one_too_many_are_named() -> None:
    session = Session()
    session.add_shot("cat.jpg", PICTURE, Limits(supports=1))
    with pytest.raises(UserError, match=r"cat\.jpg: nothing is painted"):
        session.support()
    with pytest.raises(UserError, match=r"dog\.jpg: there are 1 support images.*remove one"):
        session.add_shot("dog.jpg", PICTURE, Limits(supports=1))


def test_uploads_that_are_no_image_too_large_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("1", (10000, 10000)).save(tmp_path / "large.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    scene(tmp_path / "whole.png", 40, 50)
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:999])
    for name, words in (
        ("text.jpg", "is not an image"),
        ("large.png", "10000x10000 are 100 megapixels, and at most 50"),
        ("bomb.png", "more than 50 megapixels"),
        ("half.png", "not a readable image"),
    ):
        with warnings.catch_warnings(), pytest.raises(UserError, match=f"^{name}: .*{words}") as caught:
            warnings.simplefilter("ignore")  # Pillow's of the large ones
            read_upload(tmp_path / name, Limits())
        assert str(tmp_path) not in str(caught.value)
    assert read_upload(tmp_path / "whole.png", Limits()).shape == (40, 50, 3)


def test_masks_from_files(tmp_path: Path) -> None:
    session = Session()
    mask = scene(tmp_path / "image.jpg")
    session.add_shot("image.jpg", read_upload(tmp_path / "image.jpg", Limits()), Limits())
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    assert (read_painted(tmp_path / "mask.png", session.shot, Limits()) == mask).all()
    Image.fromarray(mask[:, :30] * 255).save(tmp_path / "narrow.png")
    with pytest.raises(UserError, match=r"image\.jpg: is 80x60 as shown, but its mask is 30x60"):
        read_painted(tmp_path / "narrow.png", session.shot, Limits())
    mask[:9, :9] = 7
    Image.fromarray(mask).save(tmp_path / "two.png")
    with pytest.raises(UserError, match=r"^two\.png: marks 2 classes"):
        read_painted(tmp_path / "two.png", session.shot, Limits())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("/tmp/a b.jpg", "a_b.jpg"),
        (".hidden", "hidden"),
        ("..", "image"),
        ("caf\u00e9 <b>.png", "caf\u00e9_b_.png"),
        ("x" * 300 + ".jpg", "x" * 76 + ".jpg"),
    ],
)
def test_names_of_uploads_lead_nowhere(name: str, expected: str) -> None:
    assert safe_name(name, ()) == expected
    assert safe_name(name, {expected}) == f"{Path(expected).stem}_2{Path(expected).suffix}"

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.tools.browser.test_state import PICTURE
from tests.toy import generator
from tools.browser.painting import PREFIX, painting, read_painting
from tools.browser.state import CANVAS_SIDE, Limits, Session
from util.errors import UserError


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_what_the_canvas_shows_comes_back_as_it_was() -> None:
    session = Session()
    assert painting(session) is None
    mask = generator().integers(0, 2, (40, 50)).astype(np.uint8)
    session.add_shot("a", PICTURE, Limits(), mask)
    shown = painting(session)
    assert opened(shown["image"]).size == opened(shown["ink"]).size == (50, 40)
    session.shot.mask = np.zeros_like(mask)
    read_painting(shown, session)  # not painted on: nothing to take over
    assert not session.shot.has_object
    read_painting({"shot": shown["shot"], "ink": shown["ink"]}, session)
    assert (session.shot.mask == mask).all()


def test_a_large_image_is_painted_on_reduced() -> None:
    session = Session()
    mask = np.zeros((3000, 1000), np.uint8)
    mask[1500:] = 1
    session.add_shot("a", np.zeros((3000, 1000, 3), np.uint8), Limits(), mask)
    shown = painting(session)
    assert max(opened(shown["ink"]).size) == CANVAS_SIDE
    read_painting({"shot": 1, "ink": shown["ink"]}, session)
    assert session.shot.mask.shape == mask.shape and (session.shot.mask != mask).mean() < 0.002


def test_of_a_removed_image_and_torn_ones() -> None:
    session = Session()
    session.add_shot("a", PICTURE, Limits())
    read_painting({"shot": 99, "ink": "whatever"}, session)
    buffer = io.BytesIO()
    Image.new("RGBA", (3, 3)).save(buffer, "PNG")
    small = PREFIX + base64.b64encode(buffer.getvalue()).decode()
    for ink in (None, "data:,", PREFIX + "AAAA", small):
        with pytest.raises(UserError, match="did not arrive whole"):
            read_painting({"shot": 1, "ink": ink}, session)

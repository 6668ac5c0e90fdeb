"""The canvas's side of a support image: what the page gets to paint on, and what comes back."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from tools.browser.state import Session, Shot, css_color, on_canvas, painted
from util.errors import UserError
from util.image import RGB
from util.visualize import class_color, encode_image, fit_mask

PREFIX = "data:image/png;base64,"


def painting(session: Session) -> dict[str, Any] | None:
    """What the canvas shows: the current image, its object as ink, and the colour of its class."""
    shot = session.shot
    if shot is None:
        return None
    picture, value = on_canvas(shot.image), session.value(shot.class_name)
    ink = np.zeros((*picture.shape[:2], 4), np.uint8)
    ink[fit_mask(shot.mask, picture) == 1] = (*class_color(value), 255)
    jpeg = "data:image/jpeg;base64," + base64.b64encode(encode_image(picture, ".jpg")).decode()
    png = PREFIX + base64.b64encode(encode_image(ink)).decode()
    return {"shot": shot.number, "image": jpeg, "ink": png, "color": css_color(value)}


def read_painting(value: Any, session: Session) -> None:
    """Take over what was painted since the canvas was last filled, if anything; UserError for what is no painting."""
    if not isinstance(value, dict) or "image" in value:
        return
    shot = next((shot for shot in session.shots if shot.number == value.get("shot")), None)
    if shot is not None:  # not one that was removed while it was painted on
        shot.mask = painted(_decode(value.get("ink"), shot), shot)


def _decode(url: Any, shot: Shot) -> RGB:
    size = on_canvas(shot.image).shape[1::-1]
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(url).removeprefix(PREFIX), validate=True))) as image:
            if image.size == size:
                return np.asarray(image.convert("RGBA"))
    except Exception:  # whatever a browser may send
        pass
    raise UserError(f"{shot.name}: the painting did not arrive whole; paint the object again")

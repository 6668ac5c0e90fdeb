"""What the pages are made of: messages, grids of images, and what all of them share."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_img_array_to_cache

from prediction.predictor import Predictor
from tools.browser.state import Limits
from util.config import Config
from util.errors import UserError
from util.image import RGB

Updates = dict[Any, Any]  # component -> its new value or settings

HERE = Path(__file__).parent
NETWORK: Any = {"concurrency_id": "network", "concurrency_limit": 1}  # one computation at a time, the others queue
CLICK = """
element.addEventListener("click", (event) => {
  const figure = event.target.closest("figure");
  if (figure) trigger("click", { index: [...figure.parentNode.children].indexOf(figure) });
});
"""


@dataclass
class AppContext:
    """What all tabs share: the network and how it was trained, limits, a folder for files, and where results lie."""

    predictor: Predictor
    cfg: Config
    limits: Limits
    folder: Path
    results: Path


def say(*lines: str) -> str:
    """Lines as the message on the page; none clear it."""
    text = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
    return f'<div class="message" role="alert">{text}</div>' if text else ""


def explained(message: gr.HTML) -> Callable[[Callable[..., Updates]], Callable[..., Updates]]:
    """A handler whose mistakes of the user come as a message; whatever goes well clears it."""

    def around(handler: Callable[..., Updates]) -> Callable[..., Updates]:
        @wraps(handler)
        def run(*values: Any) -> Updates:
            try:
                return {message: say(), **handler(*values)}
            except UserError as error:
                return {message: say(str(error))}

        return run

    return around


def figures(name: str, columns: int) -> gr.HTML:
    """A grid whose value are `figure`s one after the other; a click tells the place of the one that was clicked."""
    return gr.HTML(
        "",
        html_template=f'<div class="figures" style="grid-template-columns: repeat({columns}, 1fr)">${{value}}</div>',
        css_template=(HERE / "figures.css").read_text(),
        js_on_load=CLICK,
        apply_default_css=False,
        elem_id=name,
    )


def figure(component: gr.HTML, picture: RGB, text: str, chosen: bool = False) -> str:
    """An image with a line below; its file is one that gradio may serve."""
    path = html.escape(quote(save_img_array_to_cache(picture, component.GRADIO_CACHE, format="jpeg")))
    mark = ' class="chosen"' if chosen else ""
    return f'<figure{mark}><img src="/gradio_api/file={path}"><figcaption>{html.escape(text)}</figcaption></figure>'

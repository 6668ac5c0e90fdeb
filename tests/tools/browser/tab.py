"""A tab of a browser that shows the page."""

import base64
import json
import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.toy import draw_image, generator

SCREEN = {"width": 1400, "height": 1300}
START = "#start:not([disabled])"
PAINTER = "#painter button[aria-pressed=true]"


class Tab:
    """A page, what it asked for elsewhere, what went wrong in it, and the last painting that it sent."""

    def __init__(self, browser: Any, site: str) -> None:
        self.page, self.elsewhere, self.errors, self.ink = browser.new_page(viewport=SCREEN), [], [], ""  # type: ignore[var-annotated]
        self.page.set_default_timeout(90_000)
        self.page.on("request", self.on_request)
        self.page.on("pageerror", lambda error: self.on_error(str(error)))
        self.page.on("console", lambda line: self.on_error(line.text) if line.type == "error" else None)
        self.site = site
        self.page.goto(site)
        self.page.wait_for_selector(PAINTER)

    def on_request(self, request: Any) -> None:
        if not request.url.startswith((self.site, "data:", "blob:")):
            self.elsewhere.append(request.url)
        if "/queue/join" in request.url:
            for value in json.loads(request.post_data)["data"]:
                if isinstance(value, dict) and value.keys() == {"shot", "ink"}:
                    self.ink = value["ink"]

    def on_error(self, text: str) -> None:
        """Note it; that gradio's open connection ends when the page is loaded once more is none."""
        if not re.search("aborted|Connection errored", text):
            self.errors.append(text)

    def upload(self, place: str, *files: Any) -> None:
        self.page.wait_for_selector("#supports tr.file", state="detached")  # the former ones are taken
        self.page.set_input_files(f"{place} input[type=file]", list(files))

    def upload_mask(self, file: str) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#mask")
        chooser.value.set_files(file)

    def add_support(self, *files: Any) -> None:
        """Upload supports and wait for the last one on the canvas."""
        before = self.page.locator("#strip .thumbnail-lg").count()
        self.upload("#supports", *files)
        self.wait_for_shot(before + len(files))

    def wait_for_shot(self, number: int) -> None:
        """Wait until there are so many supports, the last of them on the canvas."""
        self.page.wait_for_function(f"document.querySelectorAll('#strip .thumbnail-lg').length == {number}")
        self.page.wait_for_function(f"document.querySelector('#painter canvas').dataset.shot == {number}")

    def drag(self, tool: str, *points: tuple[float, float]) -> None:
        """Drag the mouse over the canvas, points in fractions of its sides, and wait until the stroke was sent."""
        self.page.click(f"#painter button[data-tool={tool}]")
        box = self.page.locator("#painter canvas").bounding_box()
        place = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        with self.page.expect_response(lambda response: "/queue/join" in response.url):
            self.page.mouse.move(*place[0])
            self.page.mouse.down()
            for x, y in place[1:]:
                self.page.mouse.move(x, y, steps=8)
            self.page.mouse.up()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A place on the canvas, in fractions of its sides, in pixels of the page."""
        box = self.page.locator("#painter canvas").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def click_on(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.place(x, y))

    def tap_on(self, x: float, y: float) -> None:
        self.send_touches((x, y))

    def send_touches(self, *points: tuple[float, float]) -> None:
        """Put a finger down at the first point, lift it at the last."""
        devtools = self.page.context.new_cdp_session(self.page)
        for number, point in enumerate(points):
            x, y = self.place(*point)
            event = {"type": "touchMove" if number else "touchStart", "touchPoints": [{"x": x, "y": y}]}
            devtools.send("Input.dispatchTouchEvent", event)
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def polygon(self, act: Callable[[float, float], None], *corners: tuple[float, float]) -> None:
        """Set corners, the last of which closes it, and wait until it was sent."""
        self.page.click("#painter button[data-tool=polygon]")
        for corner in corners[:-1]:
            act(*corner)
        with self.page.expect_response(lambda response: "/queue/join" in response.url):
            act(*corners[-1])

    def touch(self, tool: str, *points: tuple[float, float]) -> None:
        """Draw with a finger, and wait until the stroke was sent."""
        self.page.click(f"#painter button[data-tool={tool}]")
        with self.page.expect_response(lambda response: "/queue/join" in response.url):
            self.send_touches(*points)

    def tour(self, most: int = 90) -> set[str]:
        """Press Tab all around the page, focus visible at every stop; what stops there are called or in which part."""
        about = """() => {
          const stop = document.activeElement, style = getComputedStyle(stop);
          const part = stop.closest("[id]:not([id^=html-], [id^=range_]), [role=tablist]");
          const is_seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
          const name = stop.tagName === "CANVAS" ? "canvas" : stop.innerText;
          return [[part?.id ?? "", name.trim()], is_seen || stop === document.body];
        }"""
        names: set[str] = set()
        for _ in range(most):
            self.page.keyboard.press("Tab")
            found, is_seen = self.page.evaluate(about)
            assert is_seen, found
            names |= {*found}
        return names

    def click_at(self, x: float, y: float) -> None:
        """Click the canvas at a place in fractions of its sides, and wait for the answer."""
        box = self.page.locator("#painter canvas").bounding_box()
        self.page.click("#painter canvas", position={"x": x * box["width"], "y": y * box["height"]})
        self.page.wait_for_function("document.querySelector('#painter canvas').style.cursor == ''")

    def reload(self, until: str = "#title:has-text('HMNet')") -> None:
        self.page.reload()
        self.page.wait_for_selector(until)

    def wait_for_mask(self, path: Path, is_expected: Callable[[np.ndarray], bool]) -> np.ndarray:
        """The first support's mask in the session, saved again and again until it is as expected."""
        for _ in range(20):
            if is_expected(mask := self.save(path)[0]):
                return mask
        raise AssertionError(f"the mask did not become what was expected; it marks {int(mask.sum())} pixels")

    def save(self, path: Path) -> list[np.ndarray]:
        """Save the session as a file; returns its masks."""
        with self.page.expect_download() as event:
            self.page.click("#save")
        event.value.save_as(path)
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".png") and "/" not in name]
            return [np.asarray(Image.open(archive.open(name))) for name in names]

    def painted(self) -> np.ndarray:
        """The last painting that was sent, (h, w) of 0 and 1."""
        with Image.open(BytesIO(base64.b64decode(self.ink.partition(",")[2]))) as image:
            return (np.asarray(image.convert("RGBA"))[..., 3] > 127).astype(np.uint8)

    def find(self, count: int) -> None:
        """Press the button and wait for that many results."""
        self.page.click(START)
        self.page.wait_for_function(f"document.querySelectorAll('#results .thumbnail-lg').length == {count}")
        self.page.wait_for_selector(START)

    def download(self, folder: Path) -> Path:
        """The zip, unpacked."""
        with self.page.expect_download() as event:
            self.page.click("#pack")
        with zipfile.ZipFile(event.value.path()) as archive:
            assert all(not Path(name).is_absolute() and ".." not in name for name in archive.namelist())
            archive.extractall(folder)
        return folder

    def message(self, words: str) -> None:
        """Wait until the page says so, and close what covers the page."""
        self.page.wait_for_selector(f"[data-testid=toast-body]:has-text({json.dumps(words)})")
        self.page.evaluate("document.querySelectorAll('[data-testid=toast-close]').forEach((button) => button.click())")


def scene(path: Path, height: int = 60, width: int = 80, class_id: int = 3) -> np.ndarray:
    """Write an image with one object; returns the object's mask (h, w) of 0 and 1."""
    image, mask = draw_image(generator(), height, width, [class_id])
    Image.fromarray(image).save(path)
    return (mask == class_id).astype(np.uint8)


def picture(folder: Path, name: str, *size: int) -> str:
    scene(folder / name, *size)
    return str(folder / name)

"""The image of the page in docs/app.md, made again: `python -m tools.screenshot` after `make demo`.

Needs `pip install -e '.[browser]'` and Chromium. Serves the page with the demo's network, asks for an example, lets it
be segmented, and writes what the browser shows.
"""

import argparse
import io
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

from util.arguments import Parser
from util.errors import UserError, run_main
from util.files import atomic_write

WIDTH, HEIGHT = 1280, 1020  # pixels of the window
COLORS = 256


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Write an image of the page.")
    parser.add_argument("--out", type=Path, default=Path("docs/app.png"), metavar="FILE")
    parser.add_argument("--example", type=int, default=1, metavar="N", help="which of the examples, from 1")
    parser.add_argument("--port", type=int, default=7869)
    parser.add_argument("--chromium", default="/usr/bin/chromium", metavar="FILE")
    return parser.parse_args()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the page is served; UserError if the command has ended instead."""
    while process.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise UserError("tools.app ended before it served the page; its last line says why")


def photograph(url: str, arguments: argparse.Namespace) -> bytes:
    """PNG of the page after an example was segmented."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(url)
        for number in range(1, arguments.example + 1):
            page.click("#example")
            page.wait_for_function(f"document.querySelector('#painter canvas').dataset.shot == {number}")
        page.click("#start")
        page.wait_for_function("document.querySelectorAll('#results figure').length == 6")
        page.wait_for_selector("#start:not([disabled])")
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        return bytes(page.screenshot(full_page=True))


def main() -> None:
    """Write the image with a palette, which is a third of the size."""
    arguments = parse_arguments()
    with subprocess.Popen([sys.executable, "-m", "tools.app", "--port", str(arguments.port)]) as process:
        try:
            wait_for(f"http://127.0.0.1:{arguments.port}", process)
            shot = photograph(f"http://127.0.0.1:{arguments.port}", arguments)
        finally:
            process.terminate()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLORS).save(buffer, "PNG", optimize=True)
    atomic_write(arguments.out, buffer.getvalue())
    print(f"wrote {arguments.out}, {len(buffer.getvalue()) // 1000} kB")


if __name__ == "__main__":
    run_main(main)

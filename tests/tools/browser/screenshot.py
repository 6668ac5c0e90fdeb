"""The image of the page in docs/app.md, made again: `python -m tests.tools.browser.screenshot` after `make demo`."""

import io
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.tools.browser.test_page import CHROMIUM, START, Tab, wait_for
from util.files import atomic_write

OUT = Path("docs/images/app.png")
PORT = 7869
SCREEN = {"width": 1280, "height": 1020}
COLORS = 256  # of a palette, which makes the file a third of the size


def photograph(url: str) -> bytes:
    """PNG of the page after an example was segmented."""
    with sync_playwright() as playwright:
        tab = Tab(playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]), url)
        tab.page.set_viewport_size(SCREEN)
        tab.page.click("#example")
        tab.page.wait_for_function("document.querySelector('#painter canvas').dataset.shot == 1")
        tab.page.click(START)
        tab.page.wait_for_function("document.querySelectorAll('#results .thumbnail-lg').length == 6")
        tab.page.wait_for_selector(START)
        return bytes(tab.page.screenshot(full_page=True))


def main() -> None:
    """Write the image; further arguments are those of tools.app."""
    command = [sys.executable, "-m", "tools.app", "--port", str(PORT), *sys.argv[1:]]
    with subprocess.Popen(command) as process:
        try:
            shot = photograph(wait_for(f"http://127.0.0.1:{PORT}", process))
        finally:
            process.terminate()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLORS).save(buffer, "PNG", optimize=True)
    atomic_write(OUT, buffer.getvalue())


if __name__ == "__main__":
    main()

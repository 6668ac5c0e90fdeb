"""The image of the page in docs/app.md, made again: `python -m tests.tools.browser.screenshot`.

The photographs are scikit-image's and free (coins: Brooklyn Museum, no known copyright restrictions; CC0: coffee,
rocket, Chelsea the cat; the astronaut is NASA's). Half of the one of coins is the support.
"""

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright
from skimage import data

from tests.tools.browser.conftest import CHROMIUM, wait_for
from tests.tools.browser.tab import Tab
from tools.demo import write_photographs
from util.files import atomic_write

OUT = Path("docs/images/app.png")
PORT = 7869
SCREEN = {"width": 1366, "height": 900}
WIDTH = 960  # pixels of the file
COLORS = 256  # of a palette, which makes the file a third of the size


def fill(tab: Tab, folder: Path) -> None:
    """Give the support and its mask, search the others and open the first result."""
    write_photographs(folder)
    queries = [folder / "query" / f"{name}.jpg" for name in ("coins", "cat", "coffee", "astronaut", "rocket")]
    for query in queries[3:]:
        Image.fromarray(getattr(data, query.stem)()).save(query)
    tab.page.set_viewport_size(SCREEN)
    tab.add_support(str(folder / "support/coin/photo.jpg"))
    tab.upload_mask(str(folder / "support/coin/photo.png"))
    tab.page.wait_for_selector("#strip:not(:has-text('nothing painted'))")
    tab.page.fill("#class input", "coin")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#strip .selected:has-text('coin')")
    tab.upload("#queries", *map(str, queries))
    tab.find(len(queries))
    tab.page.click("#results .thumbnail-lg >> nth=0")
    tab.page.wait_for_selector("#compare img")


def photograph(url: str, folder: Path) -> bytes:
    """PNG of the page with results, one of them opened."""
    with sync_playwright() as playwright:
        tab = Tab(playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]), url)
        fill(tab, folder)
        tab.page.set_viewport_size({**SCREEN, "height": 2 * SCREEN["height"]})  # what is out of sight is not drawn
        tab.page.wait_for_timeout(2000)  # until images are drawn
        return bytes(tab.page.screenshot(full_page=True))


def main() -> None:
    """Write the image; further arguments are those of tools.app."""
    options = sys.argv[1:]
    command = [sys.executable, "-m", "tools.app", "--port", str(PORT), *options]
    with TemporaryDirectory() as folder, subprocess.Popen(command) as process:
        try:
            shot = photograph(wait_for(f"http://127.0.0.1:{PORT}", process), Path(folder))
        finally:
            process.terminate()
    buffer, image = io.BytesIO(), Image.open(io.BytesIO(shot)).convert("RGB")
    image.resize((WIDTH, round(image.height * WIDTH / image.width))).quantize(COLORS).save(buffer, "PNG", optimize=True)
    atomic_write(OUT, buffer.getvalue())


if __name__ == "__main__":
    main()

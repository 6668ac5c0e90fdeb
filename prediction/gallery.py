"""One HTML page with a thumbnail of every prediction; it needs no other file and can be sent as it is."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prediction.drawing import overlay_size
from prediction.manifest import Record, Records
from util.errors import UserError, printable
from util.files import atomic_write
from util.image import open_image
from util.visualize import class_color, data_url, fit

SIDES = 320, 160  # pixels of a thumbnail's longer side: on a page of up to MANY images, and of more
MANY = 400

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.4 sans-serif; margin: 1.5em; color: #222; background: #fff }}
main {{ display: flex; flex-wrap: wrap; gap: 1em }}
figure {{ margin: 0; width: {side}px }}
img {{ display: block; max-width: 100%; margin: 0 auto 0.3em }}
figcaption {{ overflow-wrap: anywhere }}
i {{ display: inline-block; width: 0.8em; height: 0.8em; border: 1px solid #222; margin-right: 0.4em }}
</style></head><body><h1>{title}</h1>{summary}<main>
{figures}
</main></body></html>
"""


def write_gallery(path: Path, title: str, records: Records, complaints: Sequence[str]) -> None:
    """Write the page of all images in the manifest that lies in the page's folder, and of what could not be read."""
    side = SIDES[len(records) > MANY]
    figures = "\n".join(_figure(path.parent, records[file], side) for file in sorted(records))
    summary = f"<p>{len(records)} images.</p>"
    if complaints:
        lines = "".join(f"<li>{html.escape(printable(line))}</li>" for line in complaints)
        summary += f"<p>{len(complaints)} could not be read:</p><ul>{lines}</ul>"
    page = PAGE.format(title=html.escape(printable(title)), side=side, summary=summary, figures=figures)
    atomic_write(path, page.encode(errors="replace"))


def _figure(folder: Path, group: Sequence[Record], side: int) -> str:
    file = html.escape(printable(group[0]["file"]))
    lines = [_line(record) for record in group if record["class"] is not None] or ["nothing found"]
    image = _thumbnail(folder / group[0]["overlay"], folder / group[0]["mask"], side)
    return f"<figure>{image}<figcaption><b>{file}</b><br>{'<br>'.join(lines)}</figcaption></figure>"


def _line(record: Record) -> str:
    red, green, blue = class_color(record["value"])
    swatch = f'<i style="background:rgb({red},{green},{blue})"></i>'
    return f"{swatch}{html.escape(record['class'])}: {record['area']} pixels, score {record['score']:.2f}"


def _thumbnail(overlay: Path, mask: Path, side: int) -> str:
    """The overlay without its legend; nothing if it has been taken away."""
    try:
        with open_image(mask) as opened, open_image(overlay) as drawn:
            height, width = overlay_size(opened.height, opened.width)
            left = (drawn.width - width) // 2
            small = fit(np.asarray(drawn.crop((left, 0, left + width, height))), side, side)
    except UserError:
        return ""
    return f'<img src="{data_url(small)}" width="{small.shape[1]}" height="{small.shape[0]}" alt="">'

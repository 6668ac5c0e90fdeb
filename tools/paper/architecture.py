"""Two diagrams as SVG: the network (paper, section 4) and the rooms of this project.

Boxes are filled and lines are grey, so that both are readable on white and on black paper.
"""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tools.paper.plots import save_svg

INK, LINE = "#15202b", "#6e7b88"  # on boxes, on either paper
DATA, FROZEN, LEARNT, OUTPUT = "#f2efe6", "#cfd8e3", "#ffd9a0", "#b9e3cf"
STYLE = {"font.family": "sans-serif"}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure whose units are tenths of an inch."""
    figure = Figure(figsize=(width / 10, height / 10))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def box(axes: Axes, x: float, y: float, size: tuple[float, float], text: str, fill: str, font: float = 9) -> None:
    """A rounded rectangle about (x, y) with text in its middle, the first line bold."""
    width, height = size
    corner = (x - width / 2 + 0.5, y - height / 2 + 0.5)
    shape = FancyBboxPatch(corner, width - 1, height - 1, boxstyle="round,pad=0.5", fc=fill, ec=LINE, lw=0.8)
    axes.add_patch(shape)
    title, _, rest = text.partition("\n")
    lines = rest.count("\n") + 1 if rest else 0
    step = 0.16 * font  # of a line, in tenths of an inch
    axes.text(x, y + lines * step / 2, title, ha="center", va="center", size=font, color=INK, weight="bold")
    axes.text(x, y - step / 2, rest, ha="center", va="center", size=font - 1, color=INK, linespacing=1.25)


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """A line through the points, with a head at its end."""
    axes.plot(*zip(*points[:-1], strict=True), color=LINE, lw=1.2, solid_capstyle="round")
    axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 1.2, "shrinkA": 0})


def note(axes: Axes, x: float, y: float, text: str, font: float = 8.5) -> None:
    """Grey text on the paper."""
    axes.text(x, y, text, ha="left", va="center", size=font, color=LINE, linespacing=1.4)


def network() -> Figure:
    """HMNet from images to mask; below, what a hybrid block scans."""
    figure, axes = canvas(98, 61)
    box(axes, 7, 53, (12, 6), "support\nimage and mask", DATA)
    box(axes, 7, 41, (12, 6), "query\nimage", DATA)
    box(axes, 22, 47, (13, 9), "backbone\nResNet, VGG or timm\nfrozen", FROZEN)
    box(axes, 40, 57, (16, 6), "prior masks\ncosines of f4, f5; no weights", FROZEN)
    box(axes, 40, 49, (16, 7), "embedding\n1 x 1 of f2, f3, prototype,\nprior, mask", LEARNT)
    box(axes, 40, 41, (16, 6), "base learner\nPSPNet of base classes; f5", FROZEN)
    box(axes, 40, 33.5, (16, 6), "scene difference\nGram matrices of f2", FROZEN)
    box(axes, 58, 49, (14, 9), "trunk\n8 Mamba blocks:\nself, hybrid, self, ...", LEARNT)
    box(axes, 74, 49, (12, 7), "decoder\nASPP, residual,\nclassifier", LEARNT)
    box(axes, 90, 43, (12, 8), "ensemble\nof both learners\n(BAM)", LEARNT)
    box(axes, 90, 54, (12, 6), "mask\nof the query", OUTPUT)
    arrow(axes, (13, 53), (15.2, 53), (15.2, 49))
    arrow(axes, (13, 41), (15.2, 41), (15.2, 45))
    for y, end in ((49.5, 57), (48, 49), (46, 41), (44.5, 33.5)):
        arrow(axes, (28.5, y), (30.2, y), (30.2, end), (32, end))
    arrow(axes, (40, 54), (40, 52.5))
    arrow(axes, (48, 49), (51, 49))
    arrow(axes, (65, 49), (68, 49))
    arrow(axes, (80, 49), (82, 49), (82, 45.5), (84, 45.5))
    arrow(axes, (48, 41), (84, 41))
    arrow(axes, (48, 33.5), (90, 33.5), (90, 39))
    arrow(axes, (90, 47), (90, 51))
    recap(axes)
    return figure


def recap(axes: Axes) -> None:
    """A hybrid block: support recapped Mamba as a sequence, query intercepted Mamba below it."""
    axes.plot([1, 97], [28.5, 28.5], color=LINE, lw=0.8, ls=(0, (3, 3)))
    note(axes, 1, 26, "a hybrid block, one of its four directions", 9)
    for place, name in enumerate(("S", "P0", "S", "P1", "S", "P2", "", "S", "P15")):
        if name:
            box(axes, 21 + 6 * place, 20.5, (5.4, 4.6), name, DATA if name == "S" else LEARNT)
        else:
            note(axes, 20.3 + 6 * place, 20.5, "…", 12)
    arrow(axes, (17.5, 16.8), (75, 16.8))
    note(axes, 1, 20.5, "support recapped\nMamba (SRM)")
    note(axes, 77, 20.5, "S: the support, scanned\nagain in front of every\npatch P of the query")
    box(axes, 27, 9.5, (18, 7), "hidden state H\nright after the first S,\nmean of the four directions", FROZEN)
    box(
        axes,
        56,
        9.5,
        (24, 7),
        "y = C (exp(ΔA) H + ΔB u) + D u\nevery query position by itself,\nwith weights of the scan",
        LEARNT,
    )
    arrow(axes, (21, 18.2), (21, 13))
    arrow(axes, (36, 9.5), (44, 9.5))
    note(axes, 1, 9.5, "query intercepted\nMamba (QIM)")
    note(axes, 70, 9.5, "added to SRM's query: a position\nsees the support, not its neighbours")
    note(axes, 1, 2.5, "blue: without weights, or frozen while meta-training; orange: learns")


def house() -> Figure:
    """The rooms, each above those that it may import from."""
    figure, axes = canvas(76, 44)
    rows: list[tuple[float, list[tuple[str, float, str]]]] = [
        (
            39,
            [("train.py  train_base.py  test.py  predict.py  hmnet.py\nthin entry points and shell scripts", 72, DATA)],
        ),
        (32, [("tools\npython -m tools.NAME: prepare, report, compare, benchmark, app ...", 72, OUTPUT)]),
        (25, [("prediction\nsegment images of one's own: Predictor, supports, outputs", 72, OUTPUT)]),
        (18, [("engine\nhow a method is trained and measured: run, learner, evaluation, results", 72, FROZEN)]),
        (
            11,
            [
                ("model\nmethods, parts, backbone, scan", 35.5, LEARNT),
                ("dataset\nbenchmarks, episodes, transforms", 35.5, LEARNT),
            ],
        ),
        (4, [("util\nconfig and its schema, errors, files, images, processes, logs", 72, FROZEN)]),
    ]
    for y, row in rows:
        left = 2.0
        for text, width, fill in row:
            box(axes, left + width / 2, y, (width, 6), text, fill, 9)
            left += width + 1
    return figure


DIAGRAMS: dict[str, Callable[[], Figure]] = {"network": network, "house": house}


def draw_diagrams(folder: Path) -> list[Path]:
    """Write every diagram as NAME.svg; returns the files."""
    return [save_svg(folder / f"{name}.svg", diagram, STYLE) for name, diagram in DIAGRAMS.items()]

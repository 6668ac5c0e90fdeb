"""Drawing with matplotlib, for print: vector PDF and a PNG of the same, text that stays text, colour-blind-safe."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from numpy.typing import NDArray

from engine.results import Difference
from tools.paper.history import Bar, Course
from util.files import atomic_write
from util.image import RGB
from util.visualize import PALETTE

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, as conferences want it
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}
COLUMN, PAGE = 3.4, 6.9  # inches
ORDER = (6, 0, 3, 4, 1, 2, 5)  # of the palette, for lines and bars: blue and orange first
COLORS = [tuple(channel / 255 for channel in PALETTE[i]) for i in ORDER]
PUBLISHED = "0.45"  # grey
MARKERS = "os^Dv<>"


def color(number: int) -> tuple[float, ...]:
    """The colour of line or bar 0, 1, ..."""
    return COLORS[number % len(COLORS)]


def save(path: Path, draw: Callable[[], Figure], numbers: Mapping[str, Any]) -> list[Path]:
    """Write `path` with the suffixes .pdf and .png, and .json with the numbers that are drawn; returns the files."""
    written = [path.with_suffix(suffix) for suffix in (".pdf", ".png", ".json")]
    with matplotlib.rc_context(STYLE):
        figure = draw()
        for file in written[:2]:
            buffer = io.BytesIO()
            metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
            figure.savefig(buffer, format=file.suffix[1:], dpi=300, bbox_inches="tight", metadata=metadata)
            atomic_write(file, buffer.getvalue())
    write_numbers(written[2], numbers)
    return written


def save_svg(path: Path, draw: Callable[[], Figure], style: Mapping[Any, Any] = STYLE) -> Path:
    """Write an SVG without background, whose text stays text, the same bytes for the same figure; returns `path`."""
    with matplotlib.rc_context({**style, "svg.fonttype": "none", "svg.hashsalt": "hmnet"}):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    atomic_write(path, buffer.getvalue())
    return path


def write_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write what a figure shows as JSON."""
    atomic_write(path, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")


def draw_states(numbers: Mapping[str, Any], maps: Mapping[str, Any], support: RGB) -> Figure:
    """Figure 5. `numbers["series"]`: by name, after_support and after_query with mean and std, per cent.

    `maps`: by name, the maps (P, p, p) after support and after query of the episode whose image is `support`.
    """
    figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1)).flat
    draw_segments(top.subplots(), numbers)
    patches = len(next(iter(maps.values()))[1])
    shown = sorted({0, 1, patches - 1})
    axes = bottom.subplots(len(maps), 1 + 2 * len(shown), squeeze=False)
    values = np.concatenate([np.ravel(part) for pair in maps.values() for part in pair])
    limits = {"vmin": float(values.min()), "vmax": float(values.max()), "cmap": "viridis"}
    for row, (name, (after_support, after_query)) in zip(axes, maps.items(), strict=True):
        row[0].imshow(support)
        row[0].set_ylabel(name)
        for place, patch in enumerate(shown):
            if patch < len(after_support):
                image = row[1 + 2 * place].imshow(after_support[patch], **limits)
            image = row[2 + 2 * place].imshow(after_query[patch], **limits)
    titles = ["support", *(title for patch in shown for title in ("after support", f"after patch {patch + 1}"))]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    for axis in axes.flat:
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    bottom.colorbar(image, ax=axes, label="cosine", shrink=0.9, aspect=14)
    return figure


def draw_segments(axis: Axes, numbers: Mapping[str, Any]) -> None:
    """The maximum cosine after each segment: filled markers after the support, hollow ones after a query patch."""
    paper, series = numbers["published"], numbers["series"]
    patches = max(max(paper["patches"]) + 1, *(len(own["after_query"]) for own in series.values()))
    places = {"after_support": 0, "after_query": 1}  # of a part's first state
    for number, (name, own) in enumerate(series.items()):
        states = [(2 * i + at, row) for part, at in places.items() for i, row in enumerate(own[part])]
        points = sorted((place, row["mean"], row["std"] or 0) for place, row in states)
        x, mean, std = (np.array(column) for column in zip(*points, strict=True))
        axis.fill_between(x, mean - std, mean + std, color=color(number), alpha=0.15, linewidth=0)
        axis.plot(x, mean, color=color(number), label=name)
        for at, fill in enumerate((color(number), "white")):
            part = x % 2 == at
            axis.plot(x[part], mean[part], MARKERS[number], color=color(number), markerfacecolor=fill)
    for part, at in places.items():
        label = None if at else "published"
        axis.plot([2 * patch + at for patch in paper["patches"]], paper[part], "x", color=PUBLISHED, label=label)
    axis.set_xticks(range(2 * patches), [f"{i // 2 + 1}" if i % 2 else "S" for i in range(2 * patches)], fontsize=6)
    axis.set(xlabel="state after the support (S) or after query patch 1, 2, ...", ylabel="maximum cosine, %")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)


def draw_enhancement(numbers: Mapping[str, Any]) -> Figure:
    """Figure 7. `numbers["rows"]`: by block, mean over blocks, and as published: scan input, outputs without, with."""
    figure = Figure(figsize=(COLUMN, 2.2), layout="constrained")
    axis = figure.subplots()
    kinds = {"before": "scan input", "without": "scan output without QIM", "with": "scan output with QIM"}
    rows = numbers["rows"]
    for place, (key, label) in enumerate(kinds.items()):
        x = np.arange(len(rows)) + (place - 1) * 0.27
        bars = axis.bar(x, [row[key]["mean"] for row in rows], 0.25, color=color(place), label=label)
        axis.bar_label(bars, fmt="%.0f", fontsize=6, padding=1)
    axis.set_xticks(range(len(rows)), [row["name"] for row in rows])
    axis.set_ylabel("mean cosine of query and\nsupport foreground, %")
    axis.grid(False, axis="x")
    axis.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def draw_curves(courses: Mapping[str, Course]) -> Figure:
    """Loss and accuracy in training and mIoU in validation, over epochs."""
    figure = Figure(figsize=(PAGE, 2.3), layout="constrained")
    loss, accuracy, miou = figure.subplots(1, 3)
    for number, (name, course) in enumerate(courses.items()):
        style = {"color": color(number), "marker": MARKERS[number % len(MARKERS)], "label": name}
        loss.plot(*_sorted(course.loss), **style)
        accuracy.plot(*_sorted(course.train_accuracy, 100), **style)
        miou.plot(*_sorted({row["epoch"]: row["miou"] for row in course.validations}, 100), **style)
    measures = sorted({course.measure for course in courses.values() if course.measure})
    loss.set(xlabel="epoch", ylabel="training loss")
    accuracy.set(xlabel="epoch", ylabel=f"training {' / '.join(measures)}, %")
    miou.set(xlabel="epoch", ylabel="validation mIoU, %")
    for axis in (loss, accuracy, miou):
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(courses), 4))
    return figure


def draw_bars(tests: Mapping[str, Mapping[str, Bar]]) -> Figure:
    """IoU of every class and of the whole, the tests side by side."""
    keys = list(dict.fromkeys(key for test in tests.values() for key in test))
    width = 0.8 / len(tests)
    figure = Figure(figsize=(max(COLUMN, min(2 * PAGE, 0.5 + len(keys) * (0.25 + 0.18 * len(tests)))), 2.4))
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    for number, (name, test) in enumerate(tests.items()):
        x = np.arange(len(keys)) + (number - (len(tests) - 1) / 2) * width
        bars = [test.get(key, Bar(None)) for key in keys]
        iou, low, high = (np.array([getattr(bar, part) for bar in bars], float) for part in Bar._fields)  # None: nan
        axis.bar(x, iou, 0.92 * width, color=color(number), label=name)
        if np.isfinite(low).any():
            error = np.stack([iou - low, high - iou])
            axis.errorbar(x, iou, error, fmt="none", color="black", capsize=2, linewidth=1)
    axis.set_xticks(range(len(keys)), keys, rotation=30, ha="right", rotation_mode="anchor")
    axis.grid(False, axis="x")
    axis.set(ylabel="IoU, %", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=min(len(tests), 3))
    return figure


def draw_leads(sets: Mapping[str, Mapping[str, Sequence[Difference | None]]], lead: str) -> Figure:
    """How far a method is ahead of others, with intervals, on all episodes and on hard ones: one panel for each set."""
    height = 1 + 0.26 * max(map(len, sets.values()))
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    for axis, (title, leads) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        places = np.arange(len(leads))[::-1]
        for number, label in enumerate(("all episodes", "hard episodes")):
            found = [(place, each[number]) for place, each in zip(places, leads.values(), strict=True)]
            drawn = [(place, 100 * np.array([each.mean, each.low, each.high])) for place, each in found if each]
            y, points = (np.array(part, float) for part in zip(*drawn, strict=True))
            error = np.abs(points[:, 1:] - points[:, :1]).T
            style = {"fmt": MARKERS[number], "color": color(number), "label": label, "capsize": 2, "linewidth": 1}
            axis.errorbar(points[:, 0], y - 0.15 * (2 * number - 1), xerr=error, **style)
        axis.axvline(0, color=PUBLISHED, linewidth=0.8)
        axis.set_yticks(places, leads)
        axis.set(ylim=(-0.5, len(leads) - 0.5), title=title, xlabel=f"{lead} ahead by, in mIoU")
        axis.grid(False, axis="y")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_growth(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Seconds and memory of the benchmark's rows, one column for each key that grows in them, one line a method."""
    figures = {"cold s": "seconds,\ncold", "known support s": "seconds,\nknown support", "peak MB": "memory,\nMB"}
    figure = Figure(figsize=(PAGE, 5.2), layout="constrained")
    axes = figure.subplots(len(figures), len(rows), sharey="row", squeeze=False)
    for column, (key, measured) in enumerate(rows.items()):
        methods = dict.fromkeys(row.get("fusion", row["arch"]) for row in measured)
        for axis, (name, label) in zip(axes[:, column], figures.items(), strict=True):
            for number, method in enumerate(methods):
                own = {
                    row[key]: row[name] for row in measured if row.get("fusion", row["arch"]) == method and name in row
                }
                axis.plot(*_sorted(own), color=color(number), marker=MARKERS[number], label=method)
            axis.set(xscale="log", yscale="log", ylabel="" if column else label)
            ticks = sorted({row[key] for row in measured})
            axis.set_xticks(ticks, ticks)
            axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter())
            axis.minorticks_off()
        axes[-1, column].set_xlabel({"val_size": "image side, pixels", "shot": "shots"}[key])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _sorted(values: Mapping[Any, float], times: float = 1) -> tuple[Sequence[float], NDArray[Any]]:
    points = sorted(values.items())
    return [x for x, _ in points], times * np.array([y for _, y in points])

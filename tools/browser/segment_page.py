"""The page Segment: supports on the left, pictures to search and results on the right."""

import copy
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from prediction.predictor import SINGLE
from tools.browser import segment
from tools.browser.painting import painting, read_painting
from tools.browser.parts import HERE, NETWORK, Shop, Updates, explained, figure, figures, say
from tools.browser.state import Answer, Session, Shot, css_color, read_mask, read_upload, thumbnail
from util.errors import UserError

QUICK: Any = {"show_progress": "hidden", "trigger_mode": "multiple"}  # no event is lost, however fast they come


class Left(NamedTuple):
    """What the right side needs of the left."""

    canvas: gr.HTML
    outputs: list[Any]  # all that changes when the supports do
    show: Callable[[Session], Updates]  # their new values


def segment_page(shop: Shop, session: gr.State, message: gr.HTML) -> None:
    """Both sides."""
    with gr.Row():
        with gr.Column(scale=5):
            left = support_side(shop, session, message)
        with gr.Column(scale=7):
            search_side(shop, session, message, left)


def support_side(shop: Shop, session: gr.State, message: gr.HTML) -> Left:
    """Pictures of the object, the canvas to paint it on, its class."""
    gr.Markdown("**1. Show the object** in one picture or more")
    files = gr.File(label="Support pictures", file_count="multiple", height=120, elem_id="supports")
    strip = figures("strip", columns=5)
    canvas = gr.HTML(
        html_template=(HERE / "painter.html").read_text(),
        css_template=(HERE / "painter.css").read_text(),
        js_on_load=(HERE / "painter.js").read_text(),
        apply_default_css=False,
        elem_id="painter",
    )
    legend = gr.HTML(elem_id="classes")
    class_name = gr.Dropdown(
        [SINGLE],
        value=SINGLE,
        label="Class of this picture: choose one, or write another name",
        allow_custom_value=True,
        elem_id="class",
    )
    with gr.Row():
        mask_file = gr.UploadButton("Take its mask from a file", size="sm", elem_id="mask")
        remove = gr.Button("Remove this picture", size="sm", elem_id="remove")
    outputs = [message, strip, class_name, legend, canvas]

    def on_show(session: Session, repaint: bool = True) -> Updates:
        shots = []
        for shot in session.shots:
            small = thumbnail(shot.picture, shot.mask, session.value(shot.class_name))
            shots.append(figure(strip, small, caption(shot), chosen=shot.number == session.current))
        names = session.class_names or [SINGLE]
        chosen = session.shot.class_name if session.shot else names[0]
        swatches = "".join(
            f'<i style="background:{css_color(value)}"></i>{html.escape(name)}' for value, name in enumerate(names, 1)
        )
        return {
            strip: "".join(shots),
            class_name: gr.update(choices=names, value=chosen),
            legend: f'<div class="classes">{swatches}</div>' if session.shots else "",
            **({canvas: painting(session)} if repaint else {}),
        }

    @explained(message)
    def on_upload(session: Session, paths: Sequence[str]) -> Updates:
        complaints = []
        for path in paths:
            try:
                session.add_shot(Path(path).name, read_upload(path, shop.limits), shop.limits)
            except UserError as error:
                complaints.append(str(error))
        return {files: None, message: say(*complaints), **on_show(session)}

    @explained(message)
    def on_select(session: Session, event: gr.EventData) -> Updates:
        if event.index < len(session.shots):  # it may just have been removed
            session.current = session.shots[event.index].number
        return on_show(session)

    @explained(message)
    def on_stroke(session: Session, value: Any) -> Updates:
        read_painting(value, session)
        return on_show(session, repaint=False)

    @explained(message)
    def on_class(session: Session, name: str) -> Updates:
        if session.shot and name and name.strip():
            session.shot.class_name = name.strip()
        return on_show(session)

    @explained(message)
    def on_remove(session: Session) -> Updates:
        session.remove_shot()
        return on_show(session)

    @explained(message)
    def on_mask(session: Session, path: str) -> Updates:
        if session.shot is None:
            return {mask_file: None, message: say("there is no support picture yet that this mask could belong to")}
        try:
            session.shot.mask = read_mask(path, session.shot, shop.limits)
        except UserError as error:
            return {mask_file: None, message: say(str(error))}
        return {mask_file: None, **on_show(session)}

    files.upload(on_upload, [session, files], [files, *outputs])
    strip.click(on_select, session, outputs, **QUICK)
    canvas.input(on_stroke, [session, canvas], outputs[:-1], **QUICK)
    class_name.input(on_class, [session, class_name], outputs, **QUICK)
    remove.click(on_remove, session, outputs)
    mask_file.upload(on_mask, [session, mask_file], [mask_file, *outputs])
    return Left(canvas, outputs, on_show)


def caption(shot: Shot) -> str:
    """A support's line in the strip."""
    return f"{shot.class_name}: {shot.name}" + ("" if shot.has_object else ", nothing painted yet")


def search_side(shop: Shop, session: gr.State, message: gr.HTML, left: Left) -> None:
    """Pictures to search, results and what is shown of them, the download."""
    gr.Markdown("**2. Find it** in other pictures")
    queries = gr.File(label="Pictures to search", file_count="multiple", height=160, elem_id="queries")
    with gr.Row():
        example = gr.Button("Try an example", visible=Path(shop.cfg.data_root).is_dir(), elem_id="example")
        stop = gr.Button("Stop", elem_id="stop")
        start = gr.Button("Find the object", variant="primary", elem_id="start")
    status = gr.HTML(elem_id="status", min_height=24)
    with gr.Row():
        view = gr.Radio(list(segment.VIEWS), value=segment.VIEWS[0], label="Show", elem_id="view", scale=3)
        threshold = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Threshold", elem_id="threshold", scale=2)
    results = figures("results", columns=3)
    with gr.Row():
        pack = gr.Button("Download masks and overlays (zip)", elem_id="pack")
        load = gr.DownloadButton("zip", visible="hidden", elem_id="load")

    @explained(message)
    def on_example(session: Session) -> Updates:
        paths = segment.Examples(shop.cfg).show(session, shop.limits, shop.folder)
        return {queries: paths, **left.show(session)}

    def card(answer: Answer, view: str, threshold: float) -> str:
        drawn = segment.draw_answer(shop.predictor, answer, view, threshold)
        return figure(results, drawn, segment.describe_answer(shop.predictor, answer, threshold))

    def on_start(session: Session, value: Any, paths: list[str], view: str, threshold: float) -> Iterator[Updates]:
        session.answers, complaints, cards = [], [], ""
        yield {message: say(), results: cards, status: ""}
        try:
            read_painting(value, session)
            found = segment.answer_queries(session, copy.copy(shop.predictor), paths or [], shop.limits)
            for number, answer in enumerate(found, 1):
                if isinstance(answer, UserError):
                    complaints.append(str(answer))
                else:
                    session.answers.append(answer)
                    cards += card(answer, view, threshold)
                done = f"{number} of {len(paths)} pictures"
                yield {message: say(*complaints), results: cards, status: done}
        except UserError as error:
            yield {message: say(str(error))}

    def on_view(session: Session, view: str, threshold: float) -> Updates:
        return {results: "".join(card(answer, view, threshold) for answer in list(session.answers))}

    @explained(message)
    def on_pack(session: Session, threshold: float) -> Updates:
        return {load: str(segment.write_zip(session, shop.predictor, threshold, shop.folder))}

    example.click(on_example, session, [queries, *left.outputs])
    asked = start.click(
        on_start, [session, left.canvas, queries, view, threshold], [message, results, status],
        show_progress_on=status, **NETWORK,
    )  # fmt: skip
    stop.click(lambda: "stopped", None, status, cancels=asked)
    for changed in (view.input, threshold.input):
        changed(on_view, [session, view, threshold], results, show_progress="hidden", trigger_mode="always_last")
    packed = pack.click(on_pack, [session, threshold], [message, load])
    packed.success(None, js="() => document.querySelector('#load').click()")

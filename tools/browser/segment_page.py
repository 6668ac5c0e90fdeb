"""The page Segment: supports on the left, images to search and results on the right."""

import copy
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from prediction.predictor import SINGLE
from tools.browser import segment
from tools.browser.painting import painting, read_painting
from tools.browser.parts import HERE, NETWORK, AppContext, Updates, explained, figure, figures, say
from tools.browser.state import Answer, Session, Shot, css_color, read_painted, read_upload, thumbnail
from util.errors import UserError

QUICK: Any = {"show_progress": "hidden", "trigger_mode": "multiple"}  # no event is lost, however fast they come


def segment_page(context: AppContext, session: gr.State, message: gr.HTML) -> None:
    """Both sides."""
    with gr.Row():
        with gr.Column(scale=5):
            support = SupportSide(context, message)
        with gr.Column(scale=7):
            search = SearchSide(context, message, support)
    support.connect(session)
    search.connect(session)


class SupportSide:
    """Images of the object, the canvas to paint it on, its class."""

    def __init__(self, context: AppContext, message: gr.HTML) -> None:
        self.context, self.message = context, message
        gr.Markdown("**1. Show the object** in one image or more")
        self.files = gr.File(label="Support images", file_count="multiple", height=120, elem_id="supports")
        self.strip = figures("strip", columns=5)
        self.canvas = gr.HTML(
            html_template=(HERE / "painter.html").read_text(),
            css_template=(HERE / "painter.css").read_text(),
            js_on_load=(HERE / "painter.js").read_text(),
            apply_default_css=False,
            elem_id="painter",
        )
        self.legend = gr.HTML(elem_id="classes")
        self.class_name = gr.Dropdown(
            [SINGLE],
            value=SINGLE,
            label="Class of this image: choose one, or write another name",
            allow_custom_value=True,
            elem_id="class",
        )
        with gr.Row():
            self.mask_file = gr.UploadButton("Take its mask from a file", size="sm", elem_id="mask")
            self.remove = gr.Button("Remove this image", size="sm", elem_id="remove")
        self.outputs = [message, self.strip, self.class_name, self.legend, self.canvas]  # what supports change

    def connect(self, session: gr.State) -> None:
        """Say what happens on every click, stroke and file."""
        call, outputs, mask_file = explained(self.message), self.outputs, self.mask_file
        self.files.upload(call(self.on_upload), [session, self.files], [self.files, *outputs])
        self.strip.click(call(self.on_select), session, outputs, **QUICK)
        self.canvas.input(call(self.on_stroke), [session, self.canvas], outputs[:-1], **QUICK)
        self.class_name.input(call(self.on_class), [session, self.class_name], outputs, **QUICK)
        self.remove.click(call(self.on_remove), session, outputs)
        mask_file.upload(call(self.on_mask), [session, mask_file], [mask_file, *outputs])

    def show(self, session: Session, repaint: bool = True) -> Updates:
        """All that changes when the supports do; the canvas only if it was not the user who painted."""
        shots = []
        for shot in session.shots:
            small = thumbnail(shot.image, shot.mask, session.value(shot.class_name))
            shots.append(figure(self.strip, small, caption(shot), chosen=shot.number == session.current))
        names = session.class_names or [SINGLE]
        chosen = session.shot.class_name if session.shot else names[0]
        swatches = "".join(
            f'<i style="background:{css_color(value)}"></i>{html.escape(name)}' for value, name in enumerate(names, 1)
        )
        return {
            self.strip: "".join(shots),
            self.class_name: gr.update(choices=names, value=chosen),
            self.legend: f'<div class="classes">{swatches}</div>' if session.shots else "",
            **({self.canvas: painting(session)} if repaint else {}),
        }

    def on_upload(self, session: Session, paths: Sequence[str]) -> Updates:
        complaints, limits = [], self.context.limits
        for path in paths:
            try:
                session.add_shot(Path(path).name, read_upload(path, limits), limits)
            except UserError as error:
                complaints.append(str(error))
        return {self.files: None, self.message: say(*complaints), **self.show(session)}

    def on_select(self, session: Session, event: gr.EventData) -> Updates:
        if event.index < len(session.shots):  # it may just have been removed
            session.current = session.shots[event.index].number
        return self.show(session)

    def on_stroke(self, session: Session, value: Any) -> Updates:
        read_painting(value, session)
        return self.show(session, repaint=False)

    def on_class(self, session: Session, name: str) -> Updates:
        if session.shot and name and name.strip():
            session.shot.class_name = name.strip()
        return self.show(session)

    def on_remove(self, session: Session) -> Updates:
        session.remove_shot()
        return self.show(session)

    def on_mask(self, session: Session, path: str) -> Updates:
        if session.shot is None:
            text = say("there is no support image yet that this mask could belong to")
            return {self.mask_file: None, self.message: text}
        try:
            session.shot.mask = read_painted(path, session.shot, self.context.limits)
        except UserError as error:
            return {self.mask_file: None, self.message: say(str(error))}
        return {self.mask_file: None, **self.show(session)}


def caption(shot: Shot) -> str:
    """A support's line in the strip."""
    return f"{shot.class_name}: {shot.name}" + ("" if shot.has_object else ", nothing painted yet")


class SearchSide:
    """Images to search, results and what is shown of them, the download."""

    def __init__(self, context: AppContext, message: gr.HTML, support: SupportSide) -> None:
        self.context, self.message, self.support = context, message, support
        gr.Markdown("**2. Find it** in other images")
        self.queries = gr.File(label="Images to search", file_count="multiple", height=160, elem_id="queries")
        with gr.Row():
            known = Path(context.cfg.data_root).is_dir()
            self.example = gr.Button("Try an example", visible=known, elem_id="example")
            self.stop = gr.Button("Stop", elem_id="stop")
            self.start = gr.Button("Find the object", variant="primary", elem_id="start")
        self.status = gr.HTML(elem_id="status", min_height=24)
        self.stopped = gr.HTML(
            elem_id="stopped"
        )  # apart, as an image that is just finished still says how many there are
        with gr.Row():
            first = segment.VIEWS[0]
            self.view = gr.Radio(list(segment.VIEWS), value=first, label="Show", elem_id="view", scale=3)
            self.threshold = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Threshold", elem_id="threshold", scale=2)
        self.results = figures("results", columns=3)
        with gr.Row():
            self.pack = gr.Button("Download masks and overlays (zip)", elem_id="pack")
            self.load = gr.DownloadButton("zip", visible="hidden", elem_id="load")

    def connect(self, session: gr.State) -> None:
        """Say what happens on every click."""
        call, shown = explained(self.message), [self.view, self.threshold]
        self.example.click(call(self.on_example), session, [self.queries, *self.support.outputs])
        asked = self.start.click(
            self.on_start, [session, self.support.canvas, self.queries, *shown],
            [self.message, self.results, self.status, self.stopped], show_progress_on=self.status, **NETWORK,
        )  # fmt: skip
        self.stop.click(lambda: "stopped", None, self.stopped, cancels=asked)
        for changed in (self.view.input, self.threshold.input):
            changed(self.on_view, [session, *shown], self.results, show_progress="hidden", trigger_mode="always_last")
        packed = self.pack.click(call(self.on_pack), [session, self.threshold], [self.message, self.load])
        packed.success(None, js="() => document.querySelector('#load').click()")

    def card(self, answer: Answer, view: str, threshold: float) -> str:
        """One result: its image and the line below."""
        drawn = segment.draw_answer(self.context.predictor, answer, view, threshold)
        return figure(self.results, drawn, segment.describe_answer(self.context.predictor, answer, threshold))

    def on_example(self, session: Session) -> Updates:
        paths = segment.Examples(self.context.cfg).show(session, self.context.limits, self.context.folder)
        return {self.queries: paths, **self.support.show(session)}

    def on_start(
        self, session: Session, value: Any, paths: list[str], view: str, threshold: float
    ) -> Iterator[Updates]:
        session.answers, complaints, cards = [], [], ""
        yield {self.message: say(), self.results: cards, self.status: "", self.stopped: ""}
        try:
            read_painting(value, session)
            found = segment.answer_queries(session, copy.copy(self.context.predictor), paths or [], self.context.limits)
            for number, answer in enumerate(found, 1):
                if isinstance(answer, UserError):
                    complaints.append(str(answer))
                else:
                    session.answers.append(answer)
                    cards += self.card(answer, view, threshold)
                done = f"{number} of {len(paths)} images"
                yield {self.message: say(*complaints), self.results: cards, self.status: done}
        except UserError as error:
            yield {self.message: say(str(error))}

    def on_view(self, session: Session, view: str, threshold: float) -> Updates:
        cards = [self.card(answer, view, threshold) for answer in list(session.answers)]
        return {self.results: "".join(cards)}

    def on_pack(self, session: Session, threshold: float) -> Updates:
        path = segment.write_zip(session, self.context.predictor, threshold, self.context.folder)
        return {self.load: str(path)}

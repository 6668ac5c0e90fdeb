"""The page itself, in gradio: what stands where, and which button calls what. All else is in the modules beside."""

import copy
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_img_array_to_cache

from prediction.predictor import SINGLE, Predictor
from tools.browser import explain, failures, segment
from tools.browser.painting import painting, read_painting
from tools.browser.state import Answer, Limits, Picture, Session, css_color, read_mask, read_upload, thumbnail
from util.config import Config
from util.errors import UserError

Updates = dict[Any, Any]  # component -> its new value or settings

HERE = Path(__file__).parent
NETWORK: Any = {"concurrency_id": "network", "concurrency_limit": 1}  # one computation at a time, the others queue
CLICK = """
element.addEventListener("click", (event) => {
  const figure = event.target.closest("figure");
  if (figure) trigger("click", { index: [...figure.parentNode.children].indexOf(figure) });
});
"""
NONE, ANY = "none", "any"
CSS = """
.message { padding: 0.7em 1em; border-left: 4px solid #d55e00; background: #d55e0018; border-radius: 4px; }
.message p { margin: 0.1em 0 !important; }
.classes i { display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.4em 0 1em; border-radius: 2px; }
#view label { padding: 0.3em 0.6em; }
footer { display: none !important; }
"""


@dataclass
class Shop:
    """What all tabs share: the network and how it was trained, limits, a folder for files, and where results lie."""

    predictor: Predictor
    cfg: Config
    limits: Limits
    folder: Path
    results: Path


def build_page(shop: Shop) -> gr.Blocks:
    """The three pages under one title, and one place for messages."""
    with gr.Blocks(title="HMNet", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        session = gr.State(Session())
        gr.Markdown("## Paint one object, find it in the others")
        message = gr.HTML(elem_id="message")
        with gr.Tab("Segment"):
            segment_page(shop, session, message)
        with gr.Tab("Explain") as tab:
            explain_page(shop, session, message, tab)
        with gr.Tab("Failures") as tab:
            failures_page(shop, message, tab)
    return page


def appearance() -> dict[str, Any]:
    """Settings of `launch`: colours, and fonts that the machine has."""
    fonts: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Default(primary_hue="blue", **fonts), "css": CSS, "footer_links": []}


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


def segment_page(shop: Shop, session: gr.State, message: gr.HTML) -> None:
    """Supports on the left, pictures to search on the right, results below them."""
    with gr.Row():
        with gr.Column(scale=5):
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
        with gr.Column(scale=7):
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
    supports = [message, strip, class_name, legend, canvas]

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

    @explained(message)
    def on_example(session: Session) -> Updates:
        paths = segment.Examples(shop.cfg).show(session, shop.limits, shop.folder)
        return {queries: paths, **on_show(session)}

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

    files.upload(on_upload, [session, files], [files, *supports])
    quick: Any = {"show_progress": "hidden", "trigger_mode": "multiple"}  # none is lost, however fast they come
    strip.click(on_select, session, supports, **quick)
    canvas.input(on_stroke, [session, canvas], supports[:-1], **quick)
    class_name.input(on_class, [session, class_name], supports, **quick)
    remove.click(on_remove, session, supports)
    mask_file.upload(on_mask, [session, mask_file], [mask_file, *supports])
    example.click(on_example, session, [queries, *supports])
    asked = start.click(
        on_start, [session, canvas, queries, view, threshold], [message, results, status],
        show_progress_on=status, **NETWORK,
    )  # fmt: skip
    stop.click(None, cancels=asked)
    for changed in (view.input, threshold.input):
        changed(on_view, [session, view, threshold], results, show_progress="hidden", trigger_mode="always_last")
    packed = pack.click(on_pack, [session, threshold], [message, load])
    packed.success(None, js="() => document.querySelector('#load').click()")


def caption(shot: Any) -> str:
    """A support's line in the strip."""
    return f"{shot.class_name}: {shot.name}" + ("" if shot.has_object else ", nothing painted yet")


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


def figure(component: gr.HTML, picture: Picture, text: str, chosen: bool = False) -> str:
    """A picture with a line below; its file is one that gradio may serve."""
    path = html.escape(quote(save_img_array_to_cache(picture, component.GRADIO_CACHE, format="jpeg")))
    mark = ' class="chosen"' if chosen else ""
    return f'<figure{mark}><img src="/gradio_api/file={path}"><figcaption>{html.escape(text)}</figcaption></figure>'


def explain_page(shop: Shop, session: gr.State, message: gr.HTML, tab: gr.Tab) -> None:
    """One answer's maps; a choice of the query and of the class."""
    with gr.Row():
        query = gr.Dropdown([], label="Picture", elem_id="explained")
        class_name = gr.Dropdown([], label="Class")
    maps = figures("maps", columns=4)

    @explained(message)
    def on_open(session: Session, name: str | None, wanted: str | None) -> Updates:
        if not session.answers:
            raise UserError("nothing is segmented yet; find an object on the page Segment first")
        by_name = {answer.name: answer for answer in session.answers}
        answer = by_name.get(name or "") or session.answers[0]
        names = answer.evidence.names
        chosen = wanted if wanted in names else names[0]
        shown = explain.explain(shop.predictor, answer, chosen)
        return {
            query: gr.update(choices=list(by_name), value=answer.name),
            class_name: gr.update(choices=list(names), value=chosen),
            maps: "".join(figure(maps, picture, text) for picture, text in shown),
        }

    for event in (tab.select, query.input, class_name.input):
        event(on_open, [session, query, class_name], [message, query, class_name, maps])


def failures_page(shop: Shop, message: gr.HTML, tab: gr.Tab) -> None:
    """Episodes of one or two results in a table; a click on a row draws it."""
    pairs = gr.State([])  # in the order of the table
    tests: dict[Path, failures.Test] = {}  # networks in memory, by result
    with gr.Row():
        first = gr.Dropdown([], label="Result of a test", elem_id="first")
        second = gr.Dropdown([NONE], value=NONE, label="Compare with, on the same episodes", elem_id="second")
    with gr.Row():
        class_name = gr.Dropdown([ANY], value=ANY, label="Class", elem_id="of_class")
        shot = gr.Dropdown([ANY], value=ANY, label="Shot", elem_id="of_shot")
        order = gr.Radio(["lowest first", "highest first"], value="lowest first", label="Order", elem_id="order")
    rows = gr.Dataframe(
        headers=list(failures.HEADERS),
        interactive=False,
        label="Episodes: click one to draw it",
        max_height=360,
        elem_id="rows",
    )
    panel = gr.Image(label="Episode", interactive=False, elem_id="panel", buttons=["download", "fullscreen"])

    @explained(message)
    def on_choice(one: str | None, two: str, name: str, shots: str, way: str) -> Updates:
        found = failures.find_results(shop.results)
        if not found:
            raise UserError(f"{shop.results}: holds no *{failures.ENDING}, which test.py writes; test a network first")
        one = one if one in found else next(iter(found))
        single = [key for key, files in found.items() if len(files) == 1]  # to compare with
        other = failures.read_rows(found[two]) if two in single else None
        both = failures.pair_rows(failures.read_rows(found[one]), other)
        names, numbers = failures.choices(both)
        chosen = failures.sort_pairs(
            both, name if name in names else None, int(shots) if shots in numbers else None, way == "highest first"
        )
        headers = failures.HEADERS_OF_TWO if other else failures.HEADERS
        return {
            first: gr.update(choices=list(found), value=one),
            second: gr.update(choices=[NONE, *single], value=two if two in single else NONE),
            class_name: gr.update(choices=[ANY, *names], value=name if name in names else ANY),
            shot: gr.update(choices=[ANY, *numbers], value=shots if shots in numbers else ANY),
            rows: gr.update(value={"headers": list(headers), "data": failures.table(chosen)}),
            pairs: chosen,
        }

    @explained(message)
    def on_row(pairs: list[failures.Pair], event: gr.SelectData) -> Updates:
        place = failures.table(pairs).index(event.row_value)  # however the table is sorted on the page
        picture, remark = failures.draw_pair(tests, pairs[place])
        return {panel: picture, message: say(remark)}

    choices: list[Any] = [first, second, class_name, shot, order]
    for event in (tab.select, *(choice.input for choice in choices)):
        event(on_choice, choices, [message, *choices[:4], rows, pairs])
    rows.select(on_row, pairs, [message, panel], **NETWORK)

"""The page itself, in gradio: what stands where, and which event calls what. All else is in the modules beside."""

import copy
import html
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.processing_utils import save_img_array_to_cache

from prediction.formats.table import FORMATS
from prediction.predictor import SINGLE
from tools.browser import failures, segment
from tools.browser.download import write_zip
from tools.browser.segment import Card, Limits, Network, Session
from util.errors import UserError
from util.image import RGB

HERE = Path(__file__).parent
NETWORK: Any = {"concurrency_id": "network", "concurrency_limit": 1}  # one computation at a time, the others queue
QUICK: Any = {"show_progress": "hidden", "trigger_mode": "multiple"}  # no event is lost, however fast they come
MESSAGE_SECONDS = 30
FONTS: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # that a machine has
PRIMARY = {"button_primary_background_fill": "*primary_700", "button_primary_text_color": "white"}
DARK = {f"{key}_dark": value for key, value in PRIMARY.items()}
THEME = gr.themes.Default(primary_hue="blue", **FONTS).set(color_accent="*primary_700", **PRIMARY, **DARK)


class AppContext(NamedTuple):
    """What all tabs share."""

    names: Sequence[str]  # of the networks and methods to choose from, the first one in use first
    open: Callable[[str], Network]  # one of them; UserError where something of it is missing
    limits: Limits
    folder: Path  # for files
    results: Path  # where tests lie


def warn(text: str) -> None:
    """A message that is seen wherever the page is scrolled to; files of the server are named as they were uploaded."""
    gr.Warning(html.escape(re.sub(r"\S*/[0-9a-f]{64}/", "", text)), MESSAGE_SECONDS)


def with_messages(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose UserError becomes a message, and changes nothing else."""

    @wraps(handler)
    def run(*values: Any) -> Any:
        try:
            return handler(*values)
        except UserError as error:
            warn(str(error))
            return gr.skip()

    return run


def own_component(name: str) -> gr.HTML:
    """One that gradio does not have, of the files NAME.html, NAME.css and NAME.js."""
    template, css, script = ((HERE / f"{name}.{suffix}").read_text() for suffix in ("html", "css", "js"))
    return gr.HTML(html_template=template, css_template=css, js_on_load=script, apply_default_css=False, elem_id=name)


def gallery(name: str, columns: int) -> gr.Gallery:
    """Images with captions; a click opens one, the arrow keys lead to the next."""
    options: Any = {"interactive": False, "show_label": False, "object_fit": "contain", "buttons": ["fullscreen"]}
    return gr.Gallery(elem_id=name, elem_classes="gallery", columns=columns, **options)


def saved(context: AppContext, cards: Sequence[Card]) -> list[tuple[str, str]]:
    """Images and their captions as a gallery takes them, encoded once."""
    return [(save_img_array_to_cache(image, str(context.folder), format="jpeg"), text) for image, text in cards]


def build_page(context: AppContext) -> gr.Blocks:
    """The three pages under one title."""
    with gr.Blocks(title="HMNet", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        session = gr.State(Session(context.limits, network=context.names[0]))
        stale = gr.HTML(elem_id="stale", render=False)
        network_menu(context, session, stale)
        with gr.Tab("Segment"), gr.Row():
            with gr.Column(scale=5):
                support = support_side(session, stale)
            with gr.Column(scale=7):
                search_side(context, session, support)
        with gr.Tab("Explain") as tab:
            explain_page(context, session, tab)
        with gr.Tab("Failures") as tab:
            failures_page(context, tab)
    return page


def network_menu(context: AppContext, session: gr.State, stale: gr.HTML) -> None:
    """The title, what is in use, and what else there is; another choice keeps the supports."""
    with gr.Row(equal_height=True):
        with gr.Column(scale=5):
            gr.Markdown("## Paint one object, find it in the others")
            source = gr.Markdown(f"`{context.open(context.names[0]).source}`", elem_id="title")
        label = "Network or training-free method"
        menu = gr.Dropdown(list(context.names), value=context.names[0], label=label, scale=2, elem_id="network")

    def on_choice(session: Session, name: str) -> list[str]:
        try:
            context.open(name)
            session.network = name
        except UserError as error:
            warn(str(error))
        return [session.network, f"`{context.open(session.network).source}`", stale_note(session)]

    menu.input(on_choice, [session, menu], [menu, source, stale], **NETWORK)


def stale_note(session: Session) -> str:
    """That results are no longer of these supports, where that is so."""
    what = "Supports or network have changed since; press <b>Find the object</b> again."
    return f"<p role='status'>{what}</p>" if session.is_stale else ""


def show_support(session: Session, repaint: bool = True) -> list[Any]:
    """The values of what `support_side` returns; the canvas only if it was not the user who painted."""
    names = list(session.values()) or [SINGLE]
    chosen = session.shot.class_name if session.shot else names[0]
    canvas = session.canvas() if repaint else gr.skip()
    return [session.strip(), gr.update(choices=names, value=chosen), canvas, stale_note(session)]


def support_side(session: gr.State, stale: gr.HTML) -> list[Any]:
    """Images of the object, the canvas to paint it on, its class; returns what changes with the supports."""
    gr.Markdown("**1. Show the object** in one image or more")
    files = gr.File(label="Support images", file_count="multiple", height=120, elem_id="supports")
    strip, canvas = own_component("strip"), own_component("painter")
    label = "Class of this image: choose one, or write another name"
    class_name = gr.Dropdown([SINGLE], value=SINGLE, label=label, allow_custom_value=True, elem_id="class")
    with gr.Row():
        mask_file = gr.UploadButton("Take its mask from a file", size="sm", elem_id="mask")
        remove = gr.Button("Remove this image", size="sm", elem_id="remove")
    shown = [strip, class_name, canvas, stale]

    def on(event: Any, action: Callable[..., None], *inputs: Any, **options: Any) -> Any:
        """Let an event change the session and show what it then holds, also where only a part could be done."""

        def handle(session: Session, *values: Any) -> list[Any]:
            with_messages(action)(session, *values)
            return show_support(session, repaint=action is not Session.read_painting)

        return event(handle, [session, *inputs], shown, **options)

    def on_select(session: Session, event: gr.EventData) -> list[Any]:
        session.shot = session.shots[event.index] if event.index < len(session.shots) else session.shot
        return show_support(session)

    def add_files(session: Session, paths: list[str]) -> None:
        for path in paths:
            with_messages(session.add_file)(path)

    strip.click(on_select, session, shown, **QUICK)
    on(files.upload, add_files, files).then(lambda: None, None, files)
    on(mask_file.upload, Session.read_mask, mask_file).then(lambda: None, None, mask_file)
    on(class_name.input, Session.set_class, class_name, **QUICK)
    on(canvas.input, Session.read_painting, canvas, **QUICK)
    on(remove.click, Session.remove_shot)
    return shown


def results_of(context: AppContext, session: Session, *choice: Any) -> list[Any]:
    """All results in the order that is chosen, and how many there are."""
    cards, found = segment.draw_answers(list(session.answers), *choice)
    return [saved(context, cards), f"{len(cards)} images, found in {found}" if cards else ""]


def search(context: AppContext, session: Session, painting: Any, paths: Any, *choice: Any) -> Iterator[list[Any]]:
    """Results one by one, in the end in order; what cannot be read comes as a message."""
    session.answers, cards = [], list[Any]()
    yield [cards, "", ""]
    try:
        session.read_painting(painting)
        predictor = copy.copy(context.open(session.network).predictor)
        for number, answer in enumerate(segment.answer_queries(session, predictor, paths or []), 1):
            if isinstance(answer, UserError):
                warn(str(answer))
            else:
                session.answers.append(answer)
                cards += saved(context, segment.draw_answers([answer], *choice)[0])
            yield [cards, f"{number} of {len(paths)} images", stale_note(session)]
        yield [*results_of(context, session, *choice), stale_note(session)]
    except UserError as error:
        warn(str(error))


def search_side(context: AppContext, session: gr.State, support: list[Any]) -> None:
    """Images to search, results and what is shown of them, the download."""
    gr.Markdown("**2. Find it** in other images")
    queries = gr.File(label="Images to search", file_count="multiple", height=160, elem_id="queries")
    with gr.Row():
        has_data = Path(context.open(context.names[0]).cfg.data_root).is_dir()
        example = gr.Button("Try an example", visible=has_data, elem_id="example")
        stop = gr.Button("Stop", elem_id="stop")
        start = gr.Button("Find the object", variant="primary", elem_id="start")
    status = gr.HTML(elem_id="status", min_height=24)
    support[3].render()
    with gr.Row():
        view = gr.Radio(list(segment.VIEWS), value=segment.VIEWS[0], label="Show", elem_id="view", scale=2)
        threshold = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Threshold", elem_id="threshold", scale=1)
        order = gr.Dropdown(list(segment.ORDERS), label="Order", elem_id="order", scale=1)
    results = gallery("results", columns=3)
    with gr.Row(equal_height=True):
        formats = gr.Dropdown(list(FORMATS), multiselect=True, label="Also as", elem_id="formats")
        pack = gr.Button("Download masks and overlays (zip)", elem_id="pack")
    load = gr.DownloadButton("zip", visible="hidden", elem_id="load")

    @with_messages
    def on_example(session: Session) -> list[Any]:
        cfg = context.open(session.network).cfg
        return [segment.show_example(cfg, session, context.folder), *show_support(session)]

    @with_messages
    def on_pack(session: Session, threshold: float, formats: list[str]) -> str:
        return str(write_zip(session, context.open(session.network), threshold, formats, context.folder))

    choice = [view, threshold, order]
    example.click(on_example, session, [queries, *support])
    asked = start.click(
        partial(search, context), [session, support[2], queries, *choice], [results, status, support[3]],
        show_progress_on=status, **NETWORK,
    )  # fmt: skip
    stop.click(lambda: gr.Info("stopped"), cancels=asked)
    for changed in choice:
        options: Any = {"show_progress": "hidden", "trigger_mode": "always_last"}
        changed.input(partial(results_of, context), [session, *choice], [results, status], **options)
    packed = pack.click(on_pack, [session, threshold, formats], load)
    packed.success(None, js="() => document.querySelector('#load').click()")


def explain_page(context: AppContext, session: gr.State, tab: gr.Tab) -> None:
    """One answer's maps; a choice of the query and of the class."""
    with gr.Row():
        query = gr.Dropdown([], label="Image", elem_id="explained")
        class_name = gr.Dropdown([], label="Class")
    maps = gallery("maps", columns=4)

    @with_messages
    def on_open(session: Session, place: int | None, wanted: str | None) -> list[Any]:
        answers = session.answers
        if not answers:
            raise UserError("nothing is segmented yet; find an object on the page Segment first")
        place = place if place and place < len(answers) else 0
        names = answers[place].evidence.names
        chosen = wanted if wanted in names else names[0]
        shown = segment.explain_answer(answers[place], chosen)
        images = gr.update(choices=[(each.path.name, number) for number, each in enumerate(answers)], value=place)
        return [images, gr.update(choices=list(names), value=chosen), saved(context, shown)]

    for event in (tab.select, query.input, class_name.input):
        event(on_open, [session, query, class_name], [query, class_name, maps])


def failures_page(context: AppContext, tab: gr.Tab) -> None:
    """Episodes of one or two results in a table; a click on a row draws it."""
    ordered = gr.State([])  # the table's rows and their episodes
    with gr.Row():
        first = gr.Dropdown([], label="Results of tests", multiselect=True, elem_id="first")
        second = gr.Dropdown([], label="Compare with, on the same episodes", multiselect=True, elem_id="second")
    label = "Episodes: click one to draw it, a heading to sort; filter for a class or an image"
    rows = gr.Dataframe(interactive=False, label=label, max_height=360, show_search="filter", elem_id="rows")
    remark = gr.Markdown(elem_id="remark")
    panel = gr.Image(label="Episode", interactive=False, elem_id="panel", buttons=["download", "fullscreen"])

    @with_messages
    def on_choice(*chosen: list[str] | None) -> list[Any]:
        found = failures.find_results(context.results)
        if not found:
            raise UserError(f"{context.results}: holds no *{failures.EPISODES}, which test.py writes; test one first")
        one, two = ([name for name in names or [] if name in found] for names in chosen)
        one = one or list(found)[:1]
        tested, other = (failures.read_files([found[name] for name in names]) for names in (one, two))
        ordered = failures.rows_by_iou(failures.pair_rows(tested, other if two else None))
        headers = [*(("difference", "first", "second") if two else ("IoU",)), *failures.HEADERS]
        table = gr.update(value={"headers": headers, "data": [cells for cells, _ in ordered]})
        return [*(gr.update(choices=list(found), value=names) for names in (one, two)), table, ordered]

    @with_messages
    def on_row(ordered: list[Any], event: gr.SelectData) -> tuple[RGB, str]:
        pair = next(pair for cells, pair in ordered if cells == event.row_value)  # however the page sorts them
        return failures.draw_pair(pair)

    for event in (tab.select, first.input, second.input):
        event(on_choice, [first, second], [first, second, rows, ordered])
    rows.select(on_row, ordered, [panel, remark], **NETWORK)

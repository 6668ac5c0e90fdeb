"""The page itself, in gradio: what stands where, and which event calls what. All else is in the modules beside."""

import copy
import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial, wraps
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import gradio as gr
from gradio.processing_utils import save_img_array_to_cache

from prediction.formats.table import FORMATS
from prediction.predictor import SINGLE
from tools.browser import failures, segment
from tools.browser.download import open_session, save_session, write_zip
from tools.browser.session import ORDERS, VIEWS, Card, Choice, Limits, Network, Session, read_upload
from util.errors import UserError
from util.image import RGB

HERE = Path(__file__).parent
NETWORK: Any = {"concurrency_id": "network", "concurrency_limit": 1}  # one computation at a time, the others queue
QUICK: Any = {"show_progress": "hidden", "trigger_mode": "multiple"}  # no event is lost, however fast they come
MESSAGE_SECONDS = 30
TABS = 8  # that are found again when they are loaded once more
HEIGHT = 2000  # pixels of the opened result, beyond which it is reduced
CLOSED: Sequence[Any] = (gr.update(visible=False), None, "")
ON_SHOT = {"Undo": Session.undo, "Redo": Session.redo, "Clear": Session.clear}
ON_LIST = {"Remove this image": Session.remove_shot, "Empty the list": Session.remove_all}
FONTS: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # that a machine has
PRIMARY = {"button_primary_background_fill": "*primary_700", "button_primary_text_color": "white"}
DARK = {f"{key}_dark": value for key, value in PRIMARY.items()} | {"link_text_color_dark": "*primary_300"}
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


def gallery(name: str, columns: int, **options: Any) -> gr.Gallery:
    """Images with captions."""
    shared: Any = {"interactive": False, "show_label": False, "object_fit": "contain", "buttons": []}
    return gr.Gallery(elem_id=name, elem_classes="gallery", columns=columns, **shared | options)


def saved(context: AppContext, cards: Sequence[Card]) -> list[tuple[str, str]]:
    """Images and their captions as a gallery takes them, encoded once."""
    return [(save_img_array_to_cache(image, str(context.folder), format="jpeg"), text) for image, text in cards]


def download(button: gr.Button, handler: Callable[..., Path], inputs: list[Any]) -> None:
    """Let a button make a file and hand it over; a UserError becomes a message instead."""
    link = gr.DownloadButton("file", visible="hidden", elem_id=f"{button.elem_id}-file")

    def run(*values: Any) -> str | None:
        path = with_messages(handler)(*values)
        return str(path) if isinstance(path, Path) else None

    button.click(run, inputs, link).success(None, js=f"() => document.querySelector('#{link.elem_id}').click()")


def build_page(context: AppContext) -> gr.Blocks:
    """The three pages under one title; a tab that is loaded again has what it held."""
    sessions = lru_cache(TABS)(lambda token: Session(context.limits, context.names[0]))
    with gr.Blocks(title="HMNet", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        session, token = gr.State(sessions("")), gr.Textbox(visible="hidden")
        stale = gr.HTML(elem_id="stale", render=False)
        network, opening = head(context, session, stale)
        with gr.Tab("Segment"), gr.Row():
            with gr.Column(scale=5):
                support = support_side(context, session, stale)
            with gr.Column(scale=7):
                results = search_side(context, session, support)
        with gr.Tab("Explain") as tab:
            explain_page(context, session, tab)
        with gr.Tab("Failures") as tab:
            failures_page(context, tab)

        def show_all(session: Session, network: str) -> list[Any]:
            shown = [*show_network(context, session, network), *show_support(context, session)]
            return [session, *shown, *session.choice, *results_of(context, session)]

        def on_open(session: Session, path: str) -> list[Any]:
            network = with_messages(open_session)(session, path)
            return show_all(session, network if isinstance(network, str) else session.network)

        def on_load(token: str) -> list[Any]:
            return show_all(sessions(token), sessions(token).network)

        everything = [session, *network, *support, *results]
        page.load(on_load, token, everything, js=(HERE / "page.js").read_text())
        opening.upload(on_open, [session, opening], everything)
    return page


def show_network(context: AppContext, session: Session, name: str) -> list[str]:
    """Take a network into use, or stay with the former one and say why; the name of that in use, and what it is."""

    def choose() -> None:
        if name not in context.names:
            raise UserError(f"{name}: is not among the networks here; start the page with --weights")
        context.open(name)
        session.network = name

    with_messages(choose)()
    return [session.network, f"`{context.open(session.network).source}`"]


def head(context: AppContext, session: gr.State, stale: gr.HTML) -> tuple[list[Any], gr.UploadButton]:
    """The title, the network in use and what else there is; a session as a file, the button that opens one."""
    with gr.Row(equal_height=True):
        with gr.Column(scale=5):
            gr.Markdown("## Show one object, find it in other images")
            source = gr.Markdown(elem_id="title")
        label = "Network or training-free method"
        menu = gr.Dropdown(list(context.names), value=context.names[0], label=label, scale=2, elem_id="network")
        with gr.Column(scale=1, min_width=150):
            saving = gr.Button("Save session", size="sm", elem_id="save")
            opening = gr.UploadButton("Open session", size="sm", elem_id="open")

    def on_choice(session: Session, name: str) -> list[str]:
        return [*show_network(context, session, name), stale_note(session)]

    menu.input(on_choice, [session, menu], [menu, source, stale], **NETWORK)
    download(saving, lambda session: save_session(session, context.folder), [session])
    return [menu, source], opening


def stale_note(session: Session) -> str:
    """That results are no longer of these supports, where that is so."""
    what = "Supports or network have changed since; press <b>Find the object</b> again."
    return f"<p role='status'>{what}</p>" if session.is_stale else ""


def show_support(context: AppContext, session: Session, repaint: bool = True) -> list[Any]:
    """The values of what `support_side` returns; the canvas only if it was not the user who painted."""
    names, chosen = list(session.values()) or [SINGLE], session.shot.class_name if session.shot else None
    place = next((number for number, shot in enumerate(session.shots) if shot is session.shot), None)
    strip = gr.update(value=saved(context, session.cards()), selected_index=place, visible=bool(session.shots))
    canvas = session.canvas() if repaint else gr.skip()
    return [strip, gr.update(choices=names, value=chosen or names[0]), canvas, stale_note(session)]


def action_buttons(actions: Mapping[str, Callable[[Session], None]]) -> list[tuple[gr.Button, Any]]:
    """A small button for each, called by its first word."""
    shared: Any = {"size": "sm", "min_width": 80}
    return [(gr.Button(name, elem_id=name.split()[0].lower(), **shared), action) for name, action in actions.items()]


def support_side(context: AppContext, session: gr.State, stale: gr.HTML) -> list[Any]:
    """Images of the object, the canvas to mark it on, its class; returns what changes with the supports."""
    gr.Markdown("**1. Show the object** in one image or more")
    files = gr.File(label="Support images", file_count="multiple", height=120, elem_id="supports")
    template, css, script = ((HERE / f"painter.{suffix}").read_text() for suffix in ("html", "css", "js"))
    own: Any = {"html_template": template, "css_template": css, "js_on_load": script, "apply_default_css": False}
    canvas = gr.HTML(elem_id="painter", **own)
    with gr.Row():
        on_shot = action_buttons(ON_SHOT)
        mask_file = gr.UploadButton("Mask from a file", size="sm", min_width=80, elem_id="mask")
    label = "Class of this image: choose one, or write another name"
    class_name = gr.Dropdown([SINGLE], value=SINGLE, label=label, allow_custom_value=True, elem_id="class")
    strip = gallery("strip", columns=4, fit_columns=False, allow_preview=False, visible=False)
    with gr.Row():
        on_list = action_buttons(ON_LIST)
    shown = [strip, class_name, canvas, stale]

    def on(event: Any, action: Callable[..., None], *inputs: Any, **options: Any) -> Any:
        """Let an event change the session and show what it then holds, also where only a part could be done."""

        def handle(session: Session, *values: Any) -> list[Any]:
            with_messages(action)(session, *values)
            return show_support(context, session, not (action is on_canvas and values[0].keys() == {"shot", "ink"}))

        return event(handle, [session, *inputs], shown, **options)

    def on_select(session: Session, event: gr.SelectData) -> list[Any]:
        session.shot = session.shots[event.index] if event.index < len(session.shots) else session.shot
        return show_support(context, session)

    def on_canvas(session: Session, value: dict[str, Any]) -> None:
        if "add" in value:
            session.read_click(value, context.open(session.network).predictor)
        else:
            session.read_painting(value)

    def add_files(session: Session, paths: list[str]) -> None:
        for path in paths:
            with_messages(session.add_file)(path)

    strip.select(on_select, session, shown, **QUICK)
    on(files.upload, add_files, files).then(lambda: None, None, files)
    on(mask_file.upload, Session.read_mask, mask_file).then(lambda: None, None, mask_file)
    on(class_name.input, Session.set_class, class_name, **QUICK)
    on(canvas.input, on_canvas, canvas, **QUICK)
    for button, action in on_shot + on_list:
        on(button.click, action, **QUICK)
    return shown


def results_of(context: AppContext, session: Session) -> list[Any]:
    """All results in the order that is chosen, how many there are, and the opened one."""
    session.shown, cards, found = segment.draw_answers(list(session.answers), session.choice)
    counts = f"{len(cards)} images, found in {found}" if cards else ""
    return [saved(context, cards), counts, *show_opened(context, session)]


def show_opened(context: AppContext, session: Session) -> list[Any]:
    """The opened result at its own size: whether it is there, the original with what is shown of it, its line."""
    try:
        if answer := session.opened:
            image = read_upload(answer.path, context.limits)
            prediction = answer.prediction(session.choice.threshold, image)
            drawn, text = segment.draw_answer(answer, prediction, session.choice.view, image)
            (original, _), (result, _) = saved(context, [(image, ""), (drawn, "")])
            about = html.escape(f"{text}, {image.shape[1]} x {image.shape[0]} pixels")
            return [gr.update(visible=True), (original, result), about]
    except UserError as error:
        warn(str(error))
    return list(CLOSED)


def search(context: AppContext, session: Session, painting: Any, paths: Any) -> Iterator[list[Any]]:
    """Results one by one, in the end in order; what cannot be read comes as a message."""
    session.answers, session.opened, cards = [], None, list[Any]()
    session.shown, start, same = session.answers, perf_counter(), [gr.skip()] * len(CLOSED)
    yield [cards, "", *CLOSED, ""]
    try:
        session.read_painting(painting)
        predictor = copy.copy(context.open(session.network).predictor)
        for number, answer in enumerate(segment.answer_queries(session, predictor, paths or []), 1):
            if isinstance(answer, UserError):
                warn(str(answer))
            else:
                session.answers.append(answer)
                cards += saved(context, segment.draw_answers([answer], session.choice)[1])
            left = (perf_counter() - start) / number * (len(paths) - number)
            yield [cards, f"{number} of {len(paths)} images, {left:.0f} s left", *same, stale_note(session)]
        yield [*results_of(context, session), stale_note(session)]
    except UserError as error:
        warn(str(error))


def search_side(context: AppContext, session: gr.State, support: list[Any]) -> list[Any]:
    """Images to search, results and what is shown of them, the download; returns what changes with the results."""
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
        view = gr.Radio(list(VIEWS), value=VIEWS[0], label="Show", elem_id="view", scale=2)
        threshold = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Threshold", elem_id="threshold", scale=1)
        order = gr.Dropdown(list(ORDERS), label="Order", elem_id="order", scale=1)
    choice = [view, threshold, order]
    results, opened = results_and_opened(context, session)
    with gr.Row(equal_height=True):
        formats = gr.Dropdown(list(FORMATS), multiselect=True, label="Also as", elem_id="formats")
        pack = gr.Button("Download masks and overlays (zip)", elem_id="pack")

    @with_messages
    def on_example(session: Session) -> list[Any]:
        cfg = context.open(session.network).cfg
        return [segment.show_example(cfg, session, context.folder), *show_support(context, session)]

    def on_choice(session: Session, *choice: Any) -> list[Any]:
        session.choice = Choice(*choice)
        return results_of(context, session)

    def on_pack(session: Session, formats: list[str]) -> Path:
        return write_zip(session, context.open(session.network), formats, context.folder)

    shown = [results, status, *opened]
    example.click(on_example, session, [queries, *support])
    inputs, outputs = [session, support[2], queries], [*shown, support[3]]
    asked = start.click(partial(search, context), inputs, outputs, show_progress_on=status, **NETWORK)
    stop.click(lambda: gr.Info("stopped"), cancels=asked)
    for changed in choice:
        options: Any = {"show_progress": "hidden", "trigger_mode": "always_last"}
        changed.input(on_choice, [session, *choice], shown, **options)
    download(pack, on_pack, [session, formats])
    return [*choice, *shown]


def results_and_opened(context: AppContext, session: gr.State) -> tuple[gr.Gallery, list[Any]]:
    """The results; above them the one that is opened, at its own size under a slider from original to result."""
    with gr.Column(visible=False, elem_id="opened") as place:
        slider = gr.ImageSlider(show_label=False, interactive=False, max_height=HEIGHT, elem_id="compare")
        line = gr.HTML(elem_id="line")
        with gr.Row():
            back, forward, close = (
                gr.Button(text, size="sm", min_width=80, elem_id=name)
                for name, text in (("back", "\u2190 Previous"), ("forward", "Next \u2192"), ("close", "Close (Esc)"))
            )
    results = gallery("results", columns=3, allow_preview=False)
    opened = [place, slider, line]

    def on_select(session: Session, event: gr.SelectData) -> list[Any]:
        session.opened = session.shown[event.index] if event.index < len(session.shown) else None
        return show_opened(context, session)

    def on_step(step: int, session: Session) -> list[Any]:
        number = next((number for number, answer in enumerate(session.shown) if answer is session.opened), 0) + step
        number %= max(1, len(session.shown))
        session.opened = session.shown[number] if step and session.shown else None
        return [gr.update(selected_index=number if step else None), *show_opened(context, session)]

    to_see = "() => document.querySelector('#opened')?.scrollIntoView({ block: 'nearest' })"
    results.select(on_select, session, opened, **QUICK).then(None, js=to_see)
    for button, step in ((back, -1), (forward, 1), (close, 0)):
        button.click(partial(on_step, step), session, [results, *opened], **QUICK)
    return results, opened


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

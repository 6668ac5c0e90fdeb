"""The page itself, in gradio: what stands where, and which event calls what. All else is in the modules beside."""

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.processing_utils import save_img_array_to_cache

from prediction.clicks import Click
from prediction.formats.table import FORMATS
from prediction.predictor import SINGLE
from tools.browser import failures, segment
from tools.browser.download import open_session, save_session, write_zip
from tools.browser.session import ORDERS, VIEWS, Card, Choice, Limits, Network, Session, read_upload
from util.errors import UserError
from util.image import RGB

HERE = Path(__file__).parent
NETWORK: Any = {"concurrency_id": "network", "concurrency_limit": 1}  # one computation at a time, the others queue
ORDERED: Any = {"concurrency_id": "quick", "concurrency_limit": 1}  # what an event shows is not overtaken by older
QUICK: Any = ORDERED | {"show_progress": "hidden", "trigger_mode": "multiple"}  # no event is lost, however fast
MESSAGE_SECONDS = 30
TABS = 8  # that are found again when they are loaded once more
AT_ONCE = 20  # results up to which each is shown as it comes
HEIGHT = 2000  # pixels of the opened result, beyond which it is reduced
SHOT_ACTIONS = {
    "Undo": lambda session: session.shot and session.shot.step(-1),
    "Redo": lambda session: session.shot and session.shot.step(1),
    "Clear": lambda session: session.shot and session.shot.change(0 * session.shot.mask),
}
LIST_ACTIONS = {
    "Remove this image": lambda session: session.remove([session.shot]),
    "Empty the list": lambda session: session.remove(session.shots),
}
STALE = "<b>Supports or network have changed since; press Find the object again.</b>"
MESSAGES = "<details id='messages'><summary>Messages</summary><ol></ol></details>"  # page.js fills it
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


class Part(NamedTuple):
    """Some components, and what they show of a session."""

    components: Sequence[Any]
    show: Callable[[Session], Sequence[Any]]


def components_of(parts: Sequence[Part]) -> list[Any]:
    """All that parts consist of."""
    return [each for part in parts for each in part.components]


def values_of(parts: Sequence[Part], session: Session) -> list[Any]:
    """What they show."""
    return [value for part in parts for value in part.show(session)]


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


def on(event: Any, action: Callable[..., Any], inputs: Sequence[Any], parts: Sequence[Part], **options: Any) -> Any:
    """Let an event change the session, `inputs[0]`, and show parts of what it then is; a UserError is a message."""

    @wraps(action)
    def handle(session: Session, *values: Any) -> list[Any]:
        with_messages(action)(session, *values)
        return values_of(parts, session)

    return event(handle, list(inputs), components_of(parts), **QUICK | options)


def action_buttons(actions: Mapping[str, Callable[..., Any]], session: gr.State, parts: Sequence[Part]) -> None:
    """A small button for each, called by its first word."""
    for name, action in actions.items():
        on(gr.Button(name, elem_id=name.split()[0].lower(), size="sm", min_width=80).click, action, [session], parts)


def gallery(name: str, columns: int, **options: Any) -> gr.Gallery:
    """Images with captions."""
    shared: Any = {"interactive": False, "show_label": False, "object_fit": "contain", "buttons": []}
    return gr.Gallery(elem_id=name, elem_classes="gallery", columns=columns, **shared | options)


def saved(context: AppContext, card: Card) -> tuple[str, str]:
    """An image and its caption as a gallery takes them, encoded once."""
    return save_img_array_to_cache(card[0], str(context.folder), format="jpeg"), card[1]


def download(button: gr.Button, handler: Callable[..., Path], inputs: list[Any]) -> None:
    """Let a button make a file and hand it over; a UserError becomes a message instead."""
    link = gr.DownloadButton("file", visible="hidden", elem_id=f"{button.elem_id}-file")

    def run(*values: Any) -> str | None:
        path = with_messages(handler)(*values)
        return str(path) if isinstance(path, Path) else None

    button.click(run, inputs, link).success(None, js=f"() => document.querySelector('#{link.elem_id}').click()")


def show_status(session: Session, progress: str = "") -> list[str]:
    """How far a search is, or what came of it and whether that still holds."""
    text = "; ".join(filter(None, [progress or session.status, session.expected]))
    return [f"<p role='status'>{text} {STALE if session.is_stale else ''}</p>"]


def build_page(context: AppContext) -> gr.Blocks:
    """The three pages under one title; a tab that is loaded again has what it held."""
    kept: dict[str, Session] = {}  # by tab, the latest last
    with gr.Blocks(title="HMNet", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        session, token = gr.State(Session(context.limits, context.names[0])), gr.Textbox(visible="hidden")
        status = Part([gr.HTML(elem_id="status", min_height=24, render=False)], show_status)
        network, opening = head(context, session, status)
        with gr.Tab("Segment"), gr.Row():
            with gr.Column(scale=5):
                supports = support_side(context, session, status)
            with gr.Column(scale=7):
                results = search_side(context, session, supports, status)
        with gr.Tab("Explain") as tab:
            explain_page(context, session, tab)
        with gr.Tab("Failures") as tab:
            failures_page(context, tab)
        gr.HTML(MESSAGES)
        parts = [network, *supports, *results, status]

        def on_open(session: Session, path: str) -> None:
            choose_network(context, session, open_session(session, path))

        def on_load(session: Session, token: str) -> list[Any]:
            kept[token] = session = kept.pop(token, session)  # what a new tab was given meanwhile stays
            for oldest in list(kept)[:-TABS]:
                del kept[oldest]
            return [session, *values_of(parts, session)]

        js = (HERE / "page.js").read_text()
        page.load(on_load, [session, token], [session, *components_of(parts)], js=js, **ORDERED)
        on(opening.upload, on_open, [session, opening], parts)
    return page


def choose_network(context: AppContext, session: Session, name: str) -> None:
    """Take a network into use; UserError, and the former one stays, where that cannot be."""
    if name not in context.names:
        raise UserError(f"{name}: is not among the networks here; start the page with --weights")
    context.open(name)
    session.network = name


def head(context: AppContext, session: gr.State, status: Part) -> tuple[Part, gr.UploadButton]:
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

    network = Part([menu, source], lambda session: [session.network, f"`{context.open(session.network).about}`"])
    on(menu.input, partial(choose_network, context), [session, menu], [network, status], **NETWORK)
    download(saving, lambda session: save_session(session, context.folder), [session])
    return network, opening


def support_side(context: AppContext, session: gr.State, status: Part) -> tuple[Part, Part]:
    """Images of the object, the canvas to mark it on, its class; returns the list of images, and the canvas."""
    gr.Markdown("**1. Show the object** in one image or more")
    files = gr.File(label="Support images", file_count="multiple", height=120, elem_id="supports")
    template, css, script = ((HERE / f"painter.{suffix}").read_text() for suffix in ("html", "css", "js"))
    own: Any = {"html_template": template, "css_template": css, "js_on_load": script, "apply_default_css": False}
    painter = gr.HTML(elem_id="painter", **own)
    buttons = gr.Row()
    label = "Class of this image: choose one, or write another name"
    class_name = gr.Dropdown([SINGLE], value=SINGLE, label=label, allow_custom_value=True, elem_id="class")
    strip = gallery("strip", columns=4, fit_columns=False, allow_preview=False, visible=False)

    def show_list(session: Session) -> list[Any]:
        names, chosen = list(session.values()) or [SINGLE], session.shot.class_name if session.shot else None
        place = session.shots.index(session.shot) if session.shot else None
        cards = [saved(context, card) for card in session.cards()]
        images = gr.update(value=cards, selected_index=place, visible=bool(cards))
        return [images, gr.update(choices=names, value=chosen or names[0])]

    images, canvas = Part([strip, class_name], show_list), Part([painter], lambda session: [session.canvas()])
    shown = [images, canvas, status]
    with buttons:
        action_buttons(SHOT_ACTIONS, session, shown)
        mask_file = gr.UploadButton("Mask from a file", size="sm", min_width=80, elem_id="mask")
    with gr.Row():
        action_buttons(LIST_ACTIONS, session, shown)

    def on_select(session: Session, event: gr.SelectData) -> None:
        session.shot = session.shots[event.index] if event.index < len(session.shots) else session.shot

    def on_click(session: Session, value: dict[str, Any]) -> None:
        if session.shot and session.shot.number == value["shot"]:
            click = Click(float(value["x"]), float(value["y"]), bool(value["add"]))
            session.shot.click(click, context.open(session.network).predictor)

    def add_files(session: Session, paths: list[str]) -> None:
        for path in paths:
            with_messages(session.add_file)(path)

    on(strip.select, on_select, [session], shown)
    on(files.upload, add_files, [session, files], shown).then(lambda: None, None, files)
    on(mask_file.upload, Session.read_mask, [session, mask_file], shown).then(lambda: None, None, mask_file)
    on(class_name.input, Session.set_class, [session, class_name], shown)
    on(painter.input, Session.read_painting, [session, painter], [images, status])
    on(painter.submit, on_click, [session, painter], shown)
    return images, canvas


def search_side(context: AppContext, session: gr.State, supports: Sequence[Part], status: Part) -> list[Part]:
    """Images to search, results and what is shown of them, the download; returns what changes with the results."""
    gr.Markdown("**2. Find it** in other images")
    queries = gr.File(label="Images to search", file_count="multiple", height=160, elem_id="queries")
    with gr.Row():
        has_data = Path(context.open(context.names[0]).source.cfg.data_root).is_dir()
        example = gr.Button("Try an example", visible=has_data, elem_id="example")
        stop = gr.Button("Stop", elem_id="stop")
        start = gr.Button("Find the object", variant="primary", elem_id="start")
    status.components[0].render()
    with gr.Row():
        view = gr.Radio(list(VIEWS), value=VIEWS[0], label="Show", elem_id="view", scale=2)
        threshold = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Threshold", elem_id="threshold", min_width=200)
        order = gr.Dropdown(list(ORDERS), label="Order", elem_id="order", scale=1)
    choice = Part([view, threshold, order], lambda session: session.choice)
    opened, close = opened_result(context)
    results = gallery("results", columns=3, allow_preview=False)
    cards = Part([results], lambda session: [segment.draw_answers(session, partial(saved, context))])
    shown = [cards, opened, status]
    with gr.Row(equal_height=True):
        formats = gr.Dropdown(list(FORMATS), multiselect=True, label="Also as", elem_id="formats")
        pack = gr.Button("Download masks and overlays (zip)", elem_id="pack")

    def on_example(session: Session) -> list[str]:
        return segment.show_example(context.open(session.network).source.cfg, session, context.folder)

    def on_choice(session: Session, *choice: Any) -> None:
        session.choice = Choice(*choice)

    def on_select(session: Session, event: gr.SelectData) -> None:
        session.opened = session.shown[event.index] if event.index < len(session.shown) else None

    def on_close(session: Session) -> None:
        session.opened = None

    def on_pack(session: Session, formats: list[str]) -> Path:
        return write_zip(session, context.open(session.network), formats, context.folder)

    done = example.click(with_messages(on_example), session, queries)
    on(done.then, lambda session: None, [session], [*supports, status])
    inputs, asking = [session, *supports[1].components, queries], partial(search, context, shown)
    asked = start.click(asking, inputs, components_of(shown), show_progress_on=status.components, **NETWORK)
    on(stop.click, lambda session: gr.Info("stopped"), [session], shown, cancels=asked)
    for changed in choice.components:
        on(changed.input, on_choice, [session, *choice.components], shown, trigger_mode="always_last")
    to_see = "() => document.querySelector('#opened')?.scrollIntoView({ block: 'nearest' })"
    on(results.select, on_select, [session], [opened]).then(None, js=to_see)
    on(close.click, on_close, [session], [opened, Part([results], lambda session: [gr.update(selected_index=None)])])
    download(pack, on_pack, [session, formats])
    return [choice, cards, opened]


def search(context: AppContext, parts: Sequence[Part], session: Session, painting: Any, paths: Any) -> Iterator[Any]:
    """Results one by one in three parts, in the end in order; what cannot be read comes as a message."""
    session.answers, session.opened, session.status = [], None, ""
    cards, same = list[Any](), [gr.skip()] * len(parts[1].components)
    try:
        session.read_painting(painting)
        predictor = context.open(session.network).predictor
        yield values_of(parts, session)
        for error in segment.answer_queries(session, predictor, paths or []):
            if error:
                warn(str(error))
            else:
                answer = session.answers[-1]
                cards.append(saved(context, segment.draw_answer(answer, session.choice, answer.view)))
            session.shown = session.answers  # in this order until all are there
            is_due = len(cards) % (1 + len(cards) // AT_ONCE) == 0  # many are shown in larger steps
            yield [cards if is_due else gr.skip(), *same, *show_status(session, session.progress)]
        yield values_of(parts, session)
        for line in segment.expect_iou(session, predictor):
            warn(line)
        yield [gr.skip(), *same, *show_status(session)]
    except UserError as error:
        warn(str(error))


def opened_result(context: AppContext) -> tuple[Part, gr.Button]:
    """The result that is opened, at its own size under a slider from original to result; the button that closes it."""
    with gr.Column(visible=False, elem_id="opened") as place:
        slider = gr.ImageSlider(show_label=False, interactive=False, max_height=HEIGHT, elem_id="compare")
        line = gr.HTML(elem_id="line")
        with gr.Row():
            for name, text in (("back", "\u2190 Previous"), ("forward", "Next \u2192")):
                button = gr.Button(text, size="sm", min_width=80, elem_id=name)
                button.click(None, js=f"() => window.step('{name}')")
            close = gr.Button("Close (Esc)", size="sm", min_width=80, elem_id="close")

    def show(session: Session) -> list[Any]:
        try:
            if answer := session.opened:
                image = read_upload(answer.path, context.limits)
                drawn, text = segment.draw_answer(answer, session.choice, image)
                (original, _), (result, _) = saved(context, (image, "")), saved(context, (drawn, ""))
                about = html.escape(f"{text}, {image.shape[1]} x {image.shape[0]} pixels")
                return [gr.update(visible=True), (original, result), about]
        except UserError as error:
            warn(str(error))
        return [gr.update(visible=False), None, ""]

    return Part([place, slider, line], show), close


def explain_page(context: AppContext, session: gr.State, tab: gr.Tab) -> None:
    """The maps of one answer and class."""
    chosen = gr.Dropdown([], label="Image and class", elem_id="explained")
    maps = gallery("maps", columns=4)

    @with_messages
    def on_open(session: Session, number: int | None) -> list[Any]:
        pairs = [(answer, place) for answer in session.answers for place in range(len(answer.support))]
        if not pairs:
            raise UserError("nothing is segmented yet; find an object on the page Segment first")
        number = number if number and number < len(pairs) else 0
        names = [f"{answer.path.name}: {answer.support[place].name}" for answer, place in pairs]
        choices = [(name, place) for place, name in enumerate(names)]
        cards = [saved(context, card) for card in segment.explain_answer(*pairs[number])]
        return [gr.update(choices=choices, value=number), cards]

    gr.on([tab.select, chosen.input], on_open, [session, chosen], [chosen, maps])


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
        tested = failures.read_tested(*([found[name] for name in names] for names in (one, two)))
        ordered = failures.rows_by_iou(tested)
        headers = [*(("difference", "first", "second") if two else ("IoU",)), *failures.HEADERS]
        table = gr.update(value={"headers": headers, "data": [cells for cells, _ in ordered]})
        return [*(gr.update(choices=list(found), value=names) for names in (one, two)), table, ordered]

    @with_messages
    def on_row(ordered: list[Any], event: gr.SelectData) -> tuple[RGB, str]:
        tested = next(tested for cells, tested in ordered if cells == event.row_value)  # however the page sorts them
        return failures.draw_episode(tested)

    gr.on([tab.select, first.input, second.input], on_choice, [first, second], [first, second, rows, ordered])
    rows.select(on_row, ordered, [panel, remark], **NETWORK)

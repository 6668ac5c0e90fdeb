"""The page itself, in gradio: what stands where, and which event calls what. All else is in the modules beside."""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_img_array_to_cache

from engine import replay
from engine.results import EPISODES
from prediction.clicks import Click
from prediction.evidence import VIEWS
from prediction.formats.table import FORMATS
from prediction.predictor import SINGLE
from tools.browser.answer import ORDERS, Display
from tools.browser.download import open_example, open_session, save_session, write_zip
from tools.browser.session import Limits, Network, Session
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
ACTIONS = {
    "Undo": lambda session: session.shot and session.shot.step(-1),
    "Redo": lambda session: session.shot and session.shot.step(1),
    "Clear": lambda session: session.shot and session.shot.change(0 * session.shot.mask),
    "Remove this image": lambda session: session.remove([session.shot]),
    "Empty the list": lambda session: session.remove(session.shots),
}
IMAGES: Any = {"interactive": False, "show_label": False, "format": "jpeg"}
STALE = "<b>Supports or network have changed since; press Find the object again.</b>"
MESSAGES = "<details id='messages'><summary>Messages</summary><ol></ol></details>"  # page.js fills it
FONTS: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # that a machine has
PRIMARY = {"button_primary_background_fill": "*primary_700", "button_primary_text_color": "white"}
DARK = {f"{key}_dark": value for key, value in PRIMARY.items()} | {"link_text_color_dark": "*primary_300"}
THEME = gr.themes.Default(primary_hue="blue", **FONTS).set(color_accent="*primary_700", **PRIMARY, **DARK)

Shows = dict[Any, Callable[[Session], Any]]  # components, and what each shows of a session


def warn(text: str) -> None:
    """A message that is seen wherever the page is scrolled to; files of the server are named as they were uploaded."""
    gr.Warning(html.escape(re.sub(r"\S*/(?:[0-9a-f]{64}|tmp\w+)/(\S+/)?", "", text)), MESSAGE_SECONDS)


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


def values_of(shows: Shows, session: Session) -> dict[Any, Any]:
    """What components show of a session."""
    return {component: show(session) for component, show in shows.items()}


def gallery(name: str, columns: int, **options: Any) -> gr.Gallery:
    """Images with captions."""
    options |= {"columns": columns, "object_fit": "contain", "buttons": []}
    return gr.Gallery(elem_id=name, elem_classes="gallery", **IMAGES, **options)


def download(button: gr.Button, handler: Callable[..., Path], inputs: Sequence[Any]) -> None:
    """Let a button make a file and hand it over; a UserError becomes a message instead."""
    link = gr.DownloadButton("file", visible="hidden", elem_id=f"{button.elem_id}-file")

    def run(*values: Any) -> str | None:
        path = with_messages(handler)(*values)
        return str(path) if isinstance(path, Path) else None

    button.click(run, inputs, link).success(None, js=f"() => document.querySelector('#{link.elem_id}').click()")


def show_status(session: Session) -> str:
    """How far a search is, or what came of it and whether that still holds."""
    text = "; ".join(filter(None, [session.status, session.expected]))
    return f"<div role='status'>{text} {STALE if session.is_stale else ''}</div>"


@dataclass
class Page:
    """The page of a server, and what all its tabs share."""

    names: Sequence[str]  # of the networks and methods to choose from, the first one in use first
    open: Callable[[str], Network]  # one of them; UserError where something of it is missing
    limits: Limits
    folder: Path  # for files
    results: Path  # where tests lie

    def build(self) -> gr.Blocks:
        """The three tabs under one title; a browser's tab that is loaded again has what it held."""
        kept: dict[str, Session] = {}  # by tab, the latest last
        self.save = partial(save_img_array_to_cache, cache_dir=str(self.folder), format="jpeg")
        with gr.Blocks(title="HMNet", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
            self.state, token = gr.State(Session(self.limits, self.names[0])), gr.Textbox(visible="hidden")
            self.status: Shows = {gr.HTML(elem_id="status", min_height=24, render=False): show_status}
            opening = self.head()
            with gr.Tab("Segment"), gr.Row():
                with gr.Column(scale=5):
                    self.support_side()
                with gr.Column(scale=7):
                    self.search_side()
            with gr.Tab("Explain") as tab:
                self.explain_page(tab)
            with gr.Tab("Failures") as tab:
                self.failures_page(tab)
            gr.HTML(MESSAGES)
            shows = self.network | self.images | self.canvas | self.display | self.cards | self.opened | self.status

            def on_open(session: Session, path: str) -> None:
                self.choose_network(session, open_session(session, path))

            def on_load(session: Session, name: str) -> dict[Any, Any]:
                kept[name] = session = kept.pop(name, session)  # what a new tab was given meanwhile stays
                for oldest in list(kept)[:-TABS]:
                    del kept[oldest]
                session.stop(self.save)  # what was searched ends with the page that asked for it
                return {self.state: session, **values_of(shows, session)}

            js = (HERE / "page.js").read_text()
            page.load(on_load, [self.state, token], [self.state, *shows], js=js, **ORDERED)
            self.on(opening.upload, on_open, shows, opening)
        return page

    def on(self, event: Any, action: Callable[..., Any], shows: Shows, *inputs: Any, **options: Any) -> Any:
        """Let an event change the session, and show what it then is, its status too; a UserError is a message."""
        shows = shows | self.status

        @wraps(action)
        def handle(session: Session, *values: Any) -> Any:
            with_messages(action)(session, *values)
            return with_messages(values_of)(shows, session)

        return event(handle, [self.state, *inputs], list(shows), **QUICK | options)

    def choose_network(self, session: Session, name: str) -> None:
        """Take a network into use; UserError, and the former one stays, where that cannot be."""
        if name not in self.names:
            raise UserError(f"{name}: is not among the networks here; start the page with --weights")
        self.open(name)
        session.network = name

    def head(self) -> gr.UploadButton:
        """The title, the network in use and what else there is; a session as a file, the button that opens one."""
        with gr.Row(equal_height=True):
            with gr.Column(scale=5):
                gr.Markdown("## Show one object, find it in other images")
                title = gr.Markdown(elem_id="title")
            label = "Network or training-free method"
            menu = gr.Dropdown(list(self.names), label=label, scale=2, elem_id="network")
            with gr.Column(scale=1, min_width=150):
                saving = gr.Button("Save session", size="sm", elem_id="save")
                opening = gr.UploadButton("Open session", size="sm", elem_id="open")
        self.network: Shows = {menu: lambda session: session.network}
        self.network[title] = lambda session: f"`{self.open(session.network).about}`"
        self.on(menu.input, self.choose_network, self.network, menu, **NETWORK)
        download(saving, lambda session: save_session(session, self.folder), [self.state])
        return opening

    def support_side(self) -> None:
        """Images of the object, the canvas to mark it on, and its class."""
        gr.Markdown("**1. Show the object** in one image or more")
        files = gr.File(label="Support images", file_count="multiple", height=120, elem_id="supports")
        template, css, script = ((HERE / f"painter.{suffix}").read_text() for suffix in ("html", "css", "js"))
        own: Any = {"html_template": template, "css_template": css, "js_on_load": script, "apply_default_css": False}
        painter = gr.HTML(elem_id="painter", **own)
        buttons = gr.Row()
        label = "Class of this image: choose one, or write another name"
        class_name = gr.Dropdown(label=label, allow_custom_value=True, elem_id="class")
        strip = gallery("strip", columns=4, fit_columns=False, allow_preview=False, visible=False)

        def show_class(session: Session) -> Any:
            names = list(session.values()) or [SINGLE]
            return gr.update(choices=names, value=session.shot.class_name if session.shot else names[0])

        def show_strip(session: Session) -> Any:
            place = session.shots.index(session.shot) if session.shot else None
            return gr.update(value=session.cards(), selected_index=place, visible=bool(session.shots))

        def on_select(session: Session, event: gr.SelectData) -> None:
            session.shot = session.shots[event.index] if event.index < len(session.shots) else session.shot

        def on_click(session: Session, value: dict[str, Any]) -> None:
            if session.shot and session.shot.number == value["shot"]:
                click = Click(float(value["x"]), float(value["y"]), bool(value["add"]))
                session.shot.click(click, self.open(session.network).predictor)

        def add_files(session: Session, paths: list[str]) -> None:
            for path in paths:
                with_messages(session.add_file)(path)

        self.images: Shows = {strip: show_strip, class_name: show_class}
        self.canvas: Shows = {painter: Session.canvas}
        shows = self.images | self.canvas
        with buttons:
            mask_file = gr.UploadButton("Mask from a file", size="sm", min_width=130, elem_id="mask")
            for name, action in ACTIONS.items():
                button = gr.Button(name, elem_id=name.split()[0].lower(), size="sm", min_width=50 + 5 * len(name))
                self.on(button.click, action, shows)
        self.on(strip.select, on_select, shows)
        self.on(files.upload, add_files, shows, files).then(lambda: None, None, files)
        self.on(mask_file.upload, Session.read_mask, shows, mask_file).then(lambda: None, None, mask_file)
        self.on(class_name.input, Session.set_class, shows, class_name)
        self.on(painter.input, Session.read_painting, self.images, painter)
        self.on(painter.submit, on_click, shows, painter)

    def search_side(self) -> None:
        """Images to search, results and what is shown of them, the download."""
        gr.Markdown("**2. Find it** in other images")
        queries = gr.File(label="Images to search", file_count="multiple", height=160, elem_id="queries")
        with gr.Row():
            example = gr.Button("Try an example", elem_id="example")
            stop = gr.Button("Stop", elem_id="stop")
            start = gr.Button("Find the object", variant="primary", elem_id="start")
        next(iter(self.status)).render()
        with gr.Row():
            view = gr.Radio(list(VIEWS), label="Show", elem_id="view", scale=2)
            threshold = gr.Slider(0.05, 0.95, step=0.01, label="Threshold", elem_id="threshold", min_width=200)
            order = gr.Dropdown(list(ORDERS), label="Order", elem_id="order", scale=1)
        self.display: Shows = {view: lambda session: session.display.view}
        self.display[threshold] = lambda session: session.display.threshold
        self.display[order] = lambda session: session.display.order
        close = self.opened_result()
        results = gallery("results", columns=3, allow_preview=False)
        self.cards: Shows = {results: lambda session: [answer.card for answer in session.shown]}
        with gr.Row(equal_height=True):
            formats = gr.Dropdown(list(FORMATS), multiselect=True, label="Also as", elem_id="formats")
            pack = gr.Button("Download masks and overlays (zip)", elem_id="pack")

        def on_display(session: Session, *display: Any) -> None:
            session.display = Display(*display)
            session.draw(self.save)

        def on_stop(session: Session) -> None:
            gr.Info("stopped")
            session.stop(self.save)

        def on_select(session: Session, event: gr.SelectData) -> None:
            session.opened = session.shown[event.index] if event.index < len(session.shown) else None

        def on_close(session: Session) -> None:
            session.opened = None

        def on_pack(session: Session, formats: list[str]) -> Path:
            return write_zip(session, self.open(session.network), formats, self.folder)

        shows = self.cards | self.opened
        done = example.click(with_messages(partial(open_example, folder=self.folder)), self.state, queries)
        self.on(done.then, lambda session: None, self.images | self.canvas | self.display | shows)
        searching: Any = NETWORK | {"outputs": [*shows, *self.status], "show_progress_on": list(self.status)}
        asked = start.click(self.search, [self.state, *self.canvas, queries], **searching)
        self.on(stop.click, on_stop, shows, cancels=asked)
        self.on(asked.then, lambda session: None, self.cards)  # a slow browser may show the last steps after the stop
        for changed in self.display:
            self.on(changed.input, on_display, shows, *self.display, trigger_mode="always_last")
        to_see = "() => document.querySelector('#opened')?.scrollIntoView({ block: 'nearest' })"
        self.on(results.select, on_select, self.opened).then(None, js=to_see)
        self.on(close.click, on_close, self.opened | {results: lambda session: gr.update(selected_index=None)})
        download(pack, on_pack, [self.state, formats])

    def search(self, session: Session, painting: Any, paths: list[str] | None) -> Iterator[dict[Any, Any]]:
        """Results one by one, in the end in order; what cannot be read comes as a message.

        What follows it shows the status that it ends with.
        """
        answers: list[Any] = []
        session.answers, session.shown, session.opened, session.status = answers, [], None, ""
        results = self.cards | self.status
        try:
            session.read_painting(painting)
            predictor = self.open(session.network).predictor
            yield values_of(results | self.opened, session)
            for error in session.search(predictor, paths or [], self.save):
                if error:
                    warn(str(error))
                is_due = len(session.answers) % (1 + len(session.answers) // AT_ONCE) == 0  # many in larger steps
                yield values_of(results if is_due else self.status, session)
            if session.answers is not answers:  # stopped meanwhile
                return
            yield values_of(results, session)
            for line in session.expect(predictor):
                warn(line)
        except UserError as error:
            warn(str(error))

    def opened_result(self) -> gr.Button:
        """The result that is opened, at its own size under a slider from original to result; returns what closes it."""
        with gr.Column(visible=False, elem_id="opened") as place:
            slider = gr.ImageSlider(max_height=HEIGHT, elem_id="compare", **IMAGES)
            line = gr.HTML(elem_id="line")
            with gr.Row():
                for name, text in (("back", "\u2190 Previous"), ("forward", "Next \u2192")):
                    button = gr.Button(text, size="sm", min_width=80, elem_id=name)
                    button.click(None, js=f"() => window.step('{name}')")
                close = gr.Button("Close (Esc)", size="sm", min_width=80, elem_id="close")

        def show_whole(session: Session) -> Any:
            try:
                return session.opened and session.opened.draw_whole(session.display)
            except UserError as error:  # its file is gone
                session.opened = None
                return warn(str(error))

        self.opened: Shows = {slider: show_whole}  # before the others, which then know
        self.opened[place] = lambda session: gr.update(visible=bool(session.opened))
        self.opened[line] = lambda session: session.opened and html.escape(session.opened.line)
        return close

    def explain_page(self, tab: gr.Tab) -> None:
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
            choices, (answer, place) = [(name, place) for place, name in enumerate(names)], pairs[number]
            return [gr.update(choices=choices, value=number), answer.explain(place)]

        gr.on([tab.select, chosen.input], on_open, [self.state, chosen], [chosen, maps])

    def failures_page(self, tab: gr.Tab) -> None:
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
        def on_display(*chosen: list[str] | None) -> list[Any]:
            found = replay.find_tests(self.results)
            if not found:
                raise UserError(f"{self.results}: holds no *{EPISODES}, which test.py writes; test one first")
            one, two = ([name for name in names or [] if name in found] for names in chosen)
            one = one or list(found)[:1]
            tested = replay.read_tested([found[name] for name in one], [found[name] for name in two])
            ordered = replay.rows_by_iou(tested)
            headers = [*(("difference", "first", "second") if two else ("IoU",)), *replay.HEADERS]
            table = gr.update(value={"headers": headers, "data": [cells for cells, _ in ordered]})
            return [*(gr.update(choices=list(found), value=names) for names in (one, two)), table, ordered]

        @with_messages
        def on_row(ordered: list[Any], event: gr.SelectData) -> tuple[RGB, str]:
            # by its cells, however the page sorts them
            return replay.draw_episode(next(tested for cells, tested in ordered if cells == event.row_value))

        gr.on([tab.select, first.input, second.input], on_display, [first, second], [first, second, rows, ordered])
        rows.select(on_row, ordered, [panel, remark], **NETWORK)

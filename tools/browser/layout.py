"""The page itself, in gradio: what stands where, and which button calls what. All else is in the modules beside."""

from pathlib import Path
from typing import Any

import gradio as gr

from tools.browser import explain, failures
from tools.browser.parts import NETWORK, AppContext, Updates, explained, figure, figures, say
from tools.browser.segment_page import segment_page
from tools.browser.state import Session
from util.errors import UserError

NONE, ANY = "none", "any"
CSS = """
.message { padding: 0.7em 1em; border-left: 4px solid #d55e00; background: #d55e0018; border-radius: 4px; }
.message p { margin: 0.1em 0 !important; }
.classes i { display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.4em 0 1em; border-radius: 2px; }
#view label { padding: 0.3em 0.6em; }
footer { display: none !important; }
"""


def build_page(context: AppContext) -> gr.Blocks:
    """The three pages under one title, and one place for messages."""
    with gr.Blocks(title="HMNet", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        session = gr.State(Session())
        gr.Markdown("## Paint one object, find it in the others")
        message = gr.HTML(elem_id="message")
        with gr.Tab("Segment"):
            segment_page(context, session, message)
        with gr.Tab("Explain") as tab:
            explain_page(context, session, message, tab)
        with gr.Tab("Failures") as tab:
            failures_page(context, message, tab)
    return page


def appearance() -> dict[str, Any]:
    """Settings of `launch`: colours, and fonts that the machine has."""
    fonts: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Default(primary_hue="blue", **fonts), "css": CSS, "footer_links": []}


def explain_page(context: AppContext, session: gr.State, message: gr.HTML, tab: gr.Tab) -> None:
    """One answer's maps; a choice of the query and of the class."""
    with gr.Row():
        query = gr.Dropdown([], label="Image", elem_id="explained")
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
        shown = explain.explain_answer(context.predictor, answer, chosen)
        return {
            query: gr.update(choices=list(by_name), value=answer.name),
            class_name: gr.update(choices=list(names), value=chosen),
            maps: "".join(figure(maps, image, text) for image, text in shown),
        }

    for event in (tab.select, query.input, class_name.input):
        event(on_open, [session, query, class_name], [message, query, class_name, maps])


def failures_page(context: AppContext, message: gr.HTML, tab: gr.Tab) -> None:
    """Episodes of one or two results in a table; a click on a row draws it."""
    pairs = gr.State([])  # in the order of the table
    tests: dict[Path, failures.LoadedTest] = {}  # networks in memory, by result
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
        found = failures.find_results(context.results)
        if not found:
            raise UserError(f"{context.results}: holds no *{failures.ENDING}, which test.py writes; test one first")
        one = one if one in found else next(iter(found))
        single = [key for key, files in found.items() if len(files) == 1]  # to compare with
        other = failures.read_files(found[two]) if two in single else None
        both = failures.pair_rows(failures.read_files(found[one]), other)
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
        image, remark = failures.draw_pair(tests, pairs[place])
        return {panel: image, message: say(remark)}

    choices: list[Any] = [first, second, class_name, shot, order]
    for event in (tab.select, *(choice.input for choice in choices)):
        event(on_choice, choices, [message, *choices[:4], rows, pairs])
    rows.select(on_row, pairs, [message, panel], **NETWORK)

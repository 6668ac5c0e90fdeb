"""The page in a real browser: from supports to results, and what is beside them."""

import json
import re
import zipfile
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prediction.choice import Source
from prediction.predictor import Predictor
from tests.tools.browser.tab import PAINTER, START, Tab, picture, scene
from tools.browser.session import Limits, Network, Session
from util.config import Config
from util.image import read_image

pytestmark = pytest.mark.browser


def test_what_shows_the_supports_is_never_overtaken(
    experiment: tuple[Config, Path], predictor: Predictor, tmp_path: Path
) -> None:
    """All events that do stand in one queue, one at a time: the answer to an older one cannot come after a newer's."""
    pytest.importorskip("gradio")
    from tools.browser.page import Page

    network = Network(Source(*experiment, is_usual=False), predictor, "toy")
    page = Page(["toy"], lambda name: network, Limits(), tmp_path, tmp_path).build()
    events = [event for event in page.fns.values() if {"strip", "painter"} & {each.elem_id for each in event.outputs}]
    assert len(events) > 10
    assert {(event.concurrency_id, event.concurrency_limit) for event in events} == {("quick", 1)}


def test_a_result_whose_file_is_gone_is_closed(
    experiment: tuple[Config, Path], predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("gradio") and pytest.importorskip("tools.browser.page")
    said: list[str] = []
    monkeypatch.setattr(module.gr, "Warning", lambda text, seconds: said.append(text))
    page = module.Page(
        ["toy"], lambda name: Network(Source(*experiment, False), predictor, ""), Limits(), tmp_path, tmp_path
    )
    page.build()
    answer: Any = SimpleNamespace(line="", draw_whole=lambda display: read_image(tmp_path / "gone.png"))
    session = Session(opened=answer)
    shown = {component.elem_id: value for component, value in module.values_of(page.opened, session).items()}
    assert session.opened is None and not shown["opened"]["visible"] and len(said) == 1 and "gone.png" in said[0]


def test_messages_name_files_as_they_were_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    page = pytest.importorskip("gradio") and pytest.importorskip("tools.browser.page")
    said: list[str] = []
    monkeypatch.setattr(page.gr, "Warning", lambda text, seconds: said.append(text))
    upload = "0a" * 32
    for place in (upload, f"{upload}/tmpq_1/0", "tmpx/example/tmpy/0"):  # an upload, in a session's file, the example's
        page.warn(f"/tmp/hmnet-1/{place}/a b<1>.png: is no good; take png/jpg")
    assert said == 3 * ["a b&lt;1&gt;.png: is no good; take png/jpg"]


def test_painted_with_the_mouse_the_result_is_the_predictors(tab: Tab, predictor: Predictor, tmp_path: Path) -> None:
    support, queries = picture(tmp_path, "support.png", 90, 120), [
        picture(tmp_path, "one.png", 60, 80),
        picture(tmp_path, "two.png", 70, 50),
    ]  # fmt: skip
    tab.add_support(support)
    tab.drag("brush", (0.3, 0.4), (0.6, 0.6), (0.7, 0.3))
    mask = tab.painted()
    assert mask.shape == (90, 120) and mask[int(0.4 * 90), int(0.3 * 120)] and mask[int(0.6 * 90), int(0.6 * 120)]
    assert 0.01 < mask.mean() < 0.3 and not mask[:, 115:].any()
    tab.drag("eraser", (0.7, 0.3), (0.7, 0.3))
    erased = tab.painted()
    assert not erased[int(0.3 * 90), int(0.7 * 120)] and 0 < erased.sum() < mask.sum()

    tab.upload("#queries", *queries)
    tab.find(2)
    out = tab.download(tmp_path / "out")
    predictor.set_support([support], [erased])
    assert ": HMNet, trained; " in tab.page.inner_text("#title")
    for path in queries:
        expected, name = predictor.predict(path), Path(path).stem
        found = np.asarray(Image.open(out / f"masks/{name}.png"))
        assert found.shape == expected.mask.shape and (found != expected.mask).mean() < 0.005
        caption = tab.page.locator(f"#results .caption-label:has-text('{name}.png')").inner_text()
        if expected.is_found:
            assert abs(expected.score - float(caption.split()[2])) < 0.02
        else:
            assert "not found" in caption


def test_another_network_keeps_supports_and_says_what_is_stale(tab: Tab, tmp_path: Path) -> None:
    support, queries = picture(tmp_path, "s.png", 90, 120), [picture(tmp_path, f"b\u00e4r {n}.png") for n in (1, 2, 3)]
    tab.add_support(support)
    tab.drag("box", (0.25, 0.2), (0.75, 0.8))
    tab.upload("#queries", *queries)
    tab.find(3)
    tab.page.click("#network input")
    tab.page.click("role=option >> text=hmnet-lite")
    tab.page.wait_for_selector("#title:has-text('hmnet-lite: HMNetLite, trained; backbone')")
    tab.page.wait_for_selector("#status:has-text('have changed since')")
    assert tab.page.locator("#strip .thumbnail-lg").count() == 1
    tab.find(3)
    tab.page.wait_for_selector("#status b", state="detached")
    tab.page.wait_for_selector("#status:has-text('3 images, found in')")
    tab.page.click("#order input")
    tab.page.click("role=option >> text=least sure first")
    predictor = Predictor.from_pretrained("hmnet-lite", "cpu")
    predictor.set_support([support], [tab.painted()])
    expected = {Path(path).name: predictor.predict(path) for path in queries}
    tab.page.wait_for_selector(f"#status:has-text('found in {sum(each.is_found for each in expected.values())}')")
    with tab.page.expect_download() as event:
        tab.page.click("#pack")
    assert event.value.suggested_filename == f"object_{date.today()}.zip"
    with zipfile.ZipFile(event.value.path()) as archive:
        assert {"run.json", "index.html", "manifest.jsonl", "classes.txt"} <= {*archive.namelist()}
        for name, each in expected.items():
            found = np.asarray(Image.open(archive.open(f"masks/{name}")))
            assert (found != each.mask).mean() < 0.01


def test_narrow_and_to_be_read_by_all(tab: Tab, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab.add_support(picture(tmp_path, "s.png", 90, 120))
    tab.drag("box", (0.25, 0.2), (0.75, 0.8))
    tab.upload("#queries", picture(tmp_path, "one.png", 300, 400), picture(tmp_path, "two.png", 300, 400))
    tab.find(2)
    tab.page.click("#results .thumbnail-lg >> nth=0")
    tab.page.wait_for_selector("#compare img")
    for width, scheme in ((1366, "light"), (390, "light"), (390, "dark"), (1366, "dark")):
        tab.page.set_viewport_size({"width": width, "height": 844})
        tab.page.emulate_media(color_scheme=scheme)
        tab.page.wait_for_function(f"document.body.classList.contains('dark') == {json.dumps(scheme == 'dark')}")
        tab.page.wait_for_timeout(500)  # until colours have changed over
        rules = {"runOnly": ["color-contrast", "image-alt", "button-name", "label"]}
        found = axe.run(tab.page, options=rules).response["violations"]
        assert not [(scheme, each["id"], node["html"][:200]) for each in found for node in each["nodes"]]
    tab.page.set_viewport_size({"width": 390, "height": 844})
    boxes = [each.bounding_box() for each in tab.page.locator("#results .thumbnail-lg").all()]
    assert boxes[0]["x"] == boxes[1]["x"] and boxes[0]["width"] > 300
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_session_is_saved_opened_kept_by_a_reload_and_emptied(tab: Tab, tmp_path: Path) -> None:
    tab.add_support(picture(tmp_path, "b\u00e4r 1.png", 90, 120))
    tab.drag("box", (0.25, 0.2), (0.75, 0.8))
    mask = tab.painted()
    tab.page.fill("#class input", "cat")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#strip .selected:has-text('cat')")
    tab.page.click("#view label:has-text('contour')")
    tab.upload("#queries", picture(tmp_path, "one.png"))
    tab.find(1)
    tab.reload()
    tab.wait_for_shot(1)
    tab.page.wait_for_selector("#results .thumbnail-lg:has-text('one.png')")
    assert tab.page.is_checked("#view label:has-text('contour') input")
    assert (tab.save(tmp_path / "saved.zip")[0] == mask).all()
    tab.page.click("#empty")
    tab.page.wait_for_selector("#strip .thumbnail-lg", state="detached")
    tab.reload()
    assert not tab.page.locator("#strip .thumbnail-lg").count()
    for file, words in (("one.png", "is no session"), ("saved.zip", "")):
        with tab.page.expect_file_chooser() as chooser:
            tab.page.click("#open")
        chooser.value.set_files(tmp_path / file)
        if words:
            tab.message(words)
    tab.page.wait_for_selector("#strip .selected:has-text('cat: b\u00e4r 1.png')")
    assert (tab.save(tmp_path / "again.zip")[0] == mask).all()


def test_what_a_tab_is_given_while_it_loads_stays(tab: Tab, tmp_path: Path) -> None:
    held: list[Any] = []
    tab.page.evaluate("sessionStorage.clear()")
    tab.page.route("**/queue/join*", lambda route: held.append(route), times=1)  # the page says which tab it is
    tab.reload(until=PAINTER)
    while not held:
        tab.page.wait_for_timeout(50)
    tab.add_support(picture(tmp_path, "early.png"))
    with tab.page.expect_response(lambda response: "/queue/join" in response.url):
        held[0].continue_()
    tab.page.wait_for_timeout(500)
    tab.reload()
    tab.wait_for_shot(1)


def test_a_result_opens_at_its_own_size(tab: Tab, tmp_path: Path) -> None:
    tab.add_support(picture(tmp_path, "s.png", 90, 120))
    tab.drag("box", (0.25, 0.2), (0.75, 0.8))
    tab.upload("#queries", *(picture(tmp_path, f"{number}.png", 700, 900 + number) for number in range(3)))
    tab.find(3)
    size = "([...document.querySelectorAll('#compare img')].map((image) => image.naturalWidth).join())"
    tab.page.click("#results .thumbnail-lg >> nth=1")
    tab.page.wait_for_function(f"{size} == '901,901'")
    steps = (("#forward", 902), ("ArrowRight", 900), ("ArrowLeft", 902), ("#back", 901), ("ArrowRight", 902))
    for step, width in steps:
        tab.page.click(step) if step[0] == "#" else tab.page.keyboard.press(step)
        tab.page.wait_for_function(f"{size} == '{width},{width}'")
        tab.page.wait_for_selector(f"#results .selected:has-text('{width - 900}.png')")
        tab.page.wait_for_selector(f"#line:has-text('{width - 900}.png'):has-text('{width} x 700 pixels')")
    sources = "[...document.querySelectorAll('#compare img')].map((image) => image.src)"
    original, overlay = tab.page.evaluate(sources)
    tab.page.click("#view label:has-text('probability')")
    tab.page.wait_for_function(f"{sources}[1] != {overlay!r}")
    assert tab.page.evaluate(sources)[0] == original
    tab.page.keyboard.press("Escape")
    tab.page.mouse.click(5, 5)
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("#compare", state="hidden")


def test_several_classes_supports_views_threshold_and_explanation(
    tab: Tab, predictor: Predictor, tmp_path: Path
) -> None:
    first, second = picture(tmp_path, "first.png"), picture(tmp_path, "second.png")
    tab.add_support(first)
    tab.drag("box", (0.2, 0.2), (0.8, 0.8))
    one = tab.painted()
    tab.add_support(second)
    tab.page.fill("#class input", "<b>dog")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#strip .thumbnail-lg.selected:has-text('<b>dog')")
    mask = scene(tmp_path / "other.png")
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    tab.upload_mask(str(tmp_path / "mask.png"))
    tab.page.wait_for_function("!document.querySelector('#strip').innerText.includes('nothing painted')")
    tab.upload("#queries", picture(tmp_path, "query.png", 50, 70))
    tab.find(1)
    predictor.set_support({"object": ([first], [one]), "<b>dog": ([second], [mask])})
    expected = predictor.predict(str(tmp_path / "query.png"))
    out = tab.download(tmp_path / "out")
    assert (np.asarray(Image.open(out / "masks/query.png")) != expected.mask).mean() < 0.01
    assert (out / "classes.txt").read_text() == "1 object\n2 <b>dog\n"

    shown = [tab.page.get_attribute("#results .thumbnail-lg img", "src")]
    for view in ("contour", "probability", "first map"):
        tab.page.click(f"#view label:has-text('{view}')")
        tab.page.wait_for_function(
            f"document.querySelector('#results .thumbnail-lg img').getAttribute('src') != {shown[-1]!r}"
        )
        shown.append(tab.page.get_attribute("#results .thumbnail-lg img", "src"))
    assert len(set(shown)) == 4
    tab.page.fill("#threshold input[type=number]", "0.95")
    tab.page.keyboard.press("Tab")
    tab.page.wait_for_selector("#results .caption-label:has-text('not found')")
    thrown = tab.download(tmp_path / "strict")
    assert not np.asarray(Image.open(thrown / "masks/query.png")).any()

    tab.page.click("role=tab[name='Explain']")
    tab.page.wait_for_selector("#maps .thumbnail-lg:has-text('QIM in block')")
    for words in ("support", "query", "prior", "before the ensemble", "base class", "after the ensemble", "result"):
        assert tab.page.locator(f"#maps .caption-label:has-text('{words}')").count()

    tab.page.click("role=tab[name='Segment']")
    tab.page.click("#strip .thumbnail-lg:has-text('object')")
    tab.page.wait_for_function("document.querySelector('#painter canvas').dataset.shot == 1")
    tab.page.click("#remove")
    tab.page.wait_for_function("document.querySelectorAll('#strip .thumbnail-lg').length == 1")


def test_what_is_no_good_is_said_on_the_page(tab: Tab, tmp_path: Path) -> None:
    good, text = picture(tmp_path, "good.png"), tmp_path / "text.jpg"
    text.write_text("no image")
    Image.new("1", (10000, 10000)).save(tmp_path / "large.png")
    tab.page.click(START)
    tab.message("there is no support image yet")
    tab.upload("#supports", str(text))
    tab.message("text.jpg: not a readable image (it is no image)")
    tab.upload("#supports", str(tmp_path / "large.png"))
    tab.message("large.png: 10000x10000 are 100 megapixels, and at most 50")
    tab.upload_mask(good)
    tab.message("no support image yet that this mask")
    tab.add_support(good)
    tab.page.click(START)
    tab.message("good.png: nothing is painted in it")
    Image.new("L", (20, 20), 255).save(tmp_path / "small.png")
    tab.upload_mask(str(tmp_path / "small.png"))
    tab.message("good.png: is 80x60 as shown, but its mask is 20x20; make them equal")
    tab.upload_mask(str(text))
    tab.message("text.jpg: not a readable image (it is no image)")
    tab.drag("box", (0.2, 0.2), (0.8, 0.8))
    tab.page.click(START)
    tab.message("there is no image to search")
    tab.page.click("role=tab[name='Explain']")
    tab.message("nothing is segmented yet")
    tab.page.click("role=tab[name='Segment']")
    large = (tmp_path / "large.png").read_bytes()
    contents = {"text.jpg": b"no image", "large.png": large, "../../up.png": Path(good).read_bytes()}
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in contents.items()]
    tab.upload("#queries", *files)
    tab.find(1)
    tab.message("text.jpg: not a readable image (it is no image)")
    tab.message("large.png: 10000x10000 are 100 megapixels")
    assert re.match(r"[0-9:]+ \S* ?there is no support image yet", tab.page.locator("#messages li").last.text_content())
    assert tab.page.locator("#messages li:has-text('at most 50')").count() == 2  # the supports' and the search's
    assert "hmnet-" not in tab.page.text_content("#messages")  # the server's folder of uploads
    out = tab.download(tmp_path / "out")
    assert [path.suffix for path in (out / "masks").iterdir()] == [".png"]


def test_two_tabs_at_once_and_one_that_is_closed(chromium: Any, site: str, tmp_path: Path) -> None:
    """Two tabs get their own results; a third, closed while it computes, leaves the others in peace."""
    tabs = [Tab(chromium, site) for _ in range(3)]
    names = [
        [picture(tmp_path, f"{tab}-{number}.png") for number in range(count)] for tab, count in enumerate((5, 5, 30))
    ]
    for tab, files in zip(tabs, names, strict=True):
        tab.add_support(files[0])
        tab.drag("box", (0.2, 0.2), (0.8, 0.8))
        tab.upload("#queries", *files)
        tab.page.wait_for_function(f"document.querySelectorAll('#queries tr.file').length == {len(files)}")
    tabs[2].page.click(START)
    tabs[2].page.wait_for_selector("#results .thumbnail-lg")
    for tab in tabs[:2]:
        tab.page.click(START)
    tabs[2].page.close()
    for number, tab in enumerate(tabs[:2]):
        tab.page.wait_for_function("document.querySelectorAll('#results .thumbnail-lg').length == 5")
        captions = tab.page.locator("#results .caption-label").all_inner_texts()
        assert [caption.split(":")[0] for caption in captions] == [f"{number}-{place}.png" for place in range(5)]
        assert not tab.errors
        tab.page.close()


def test_many_images_stopped_and_asked_again(tab: Tab, tmp_path: Path) -> None:
    for name in ("good.png", "other.png"):
        tab.add_support(picture(tmp_path, name))
        tab.drag("box", (0.2, 0.2), (0.8, 0.8))
    tab.upload("#queries", *(picture(tmp_path, f"{number}.png", 60, 80) for number in range(120)))
    tab.page.wait_for_function("document.querySelectorAll('#queries tr.file').length == 120")
    tab.page.click(START)
    tab.page.wait_for_function(
        "/^[1-9].* of 120 images, [0-9]+ s left/.test(document.querySelector('#status').innerText)"
    )
    tab.page.click("#results .thumbnail-lg >> nth=0")  # while others are looked for
    tab.page.wait_for_selector("#compare img")
    tab.page.click("#stop")
    tab.message("stopped")
    tab.page.wait_for_selector("#status:has-text('images, found in')")
    tab.page.wait_for_timeout(2000)  # gradio takes a click for a double one until then
    tab.find(120)
    tab.page.wait_for_selector("#status:has-text('120 images, found in'):has-text('expect a mean IoU of')")
    is_seen = "(each) => each.checkVisibility({ contentVisibilityAuto: true })"
    drawn = f"[...document.querySelectorAll('#results img')].map({is_seen})"
    tab.page.wait_for_function(f"{drawn}[0] && !{drawn}.at(-1)")
    tab.page.locator("#results img").last.scroll_into_view_if_needed()
    tab.page.wait_for_function(f"{drawn}.at(-1)")
    tab.page.click(START)
    tab.page.wait_for_selector("#status:has-text('s left')")
    tab.reload()
    tab.page.wait_for_selector("#status:has-text('images, found in')")


def test_the_example(tab: Tab) -> None:
    tab.page.click("#example")
    tab.page.wait_for_selector("#strip .thumbnail-lg:has-text('coin: coins.jpg')")
    tab.page.wait_for_selector("#queries tr.file:has-text('coffee')")
    tab.find(3)


def test_failures_of_a_test_and_of_two(tab: Tab) -> None:
    tab.page.click("role=tab[name='Failures']")
    cells = tab.page.locator("#rows [role=gridcell]")
    cells.filter(has_text="thing").first.wait_for()
    figures = [float(cell) for cell in tab.page.locator("#rows [aria-colindex='1'][role=gridcell]").all_inner_texts()]
    assert len(figures) > 3 and figures == sorted(figures)
    cells.filter(has_text="thing").first.click()
    tab.page.wait_for_selector("#panel img")
    tab.page.click("#second input")
    tab.page.click("role=option >> text=result_test_1shot")
    tab.page.wait_for_selector("#rows th:has-text('difference')")
    before = tab.page.get_attribute("#panel img", "src")
    cells.filter(has_text="thing").first.click()
    tab.page.wait_for_function(f"document.querySelector('#panel img').getAttribute('src') != {before!r}")
    assert not tab.page.inner_text("#remark").strip() and not tab.page.locator("[data-testid=toast-body]").count()

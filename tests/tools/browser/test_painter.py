"""Marking objects in a real browser: by mouse, finger and keys."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tools.browser.tab import Tab, picture, scene

pytestmark = pytest.mark.browser


def test_boxes_lasso_undo_and_clear(tab: Tab, tmp_path: Path) -> None:
    tab.add_support(picture(tmp_path, "support.png", 90, 120))
    tab.drag("box", (0.25, 0.2), (0.75, 0.6))
    box = tab.painted()
    expected = np.zeros_like(box)
    expected[18:54, 30:90] = 1
    assert (box != expected).mean() < 0.03
    tab.drag("box", (0.01, 0.8), (1.2, 1.2))
    assert tab.painted()[80, 5:].all()
    both = tab.painted()
    for button, left in (("#undo", box), ("#redo", both), ("#clear", 0 * box), ("#undo", both), ("#undo", box)):
        tab.page.click(button)
        tab.wait_for_mask(tmp_path / "saved.zip", lambda mask, left=left: bool((mask == left).all()))  # type: ignore[misc]
    tab.drag("lasso", (0.1, 0.7), (0.3, 0.95), (0.1, 0.95))
    ink = tab.painted() - box
    assert ink[int(0.9 * 90), int(0.15 * 120)] and not ink[int(0.75 * 90), int(0.25 * 120)] and 100 < ink.sum() < 500


def test_polygons_by_mouse_finger_and_keys_and_a_tour_by_tab(tab: Tab, tmp_path: Path) -> None:
    triangle = np.tri(90, 120, -30) * (np.arange(90) < 60)[:, None]
    triangle[:, 60:] = 0
    tab.add_support(picture(tmp_path, "support.png", 90, 120))
    corners = ((0.0, 1 / 3), (0.25, 2 / 3), (0.0, 2 / 3))
    tab.polygon(tab.click_on, *corners, corners[0])
    assert np.abs(tab.painted() - triangle).mean() < 0.02
    tab.page.click("#clear")
    tab.wait_for_mask(tmp_path / "saved.zip", lambda mask: not mask.any())
    tab.polygon(tab.tap_on, *corners, corners[-1])
    assert np.abs(tab.painted() - triangle).mean() < 0.02
    tab.touch("brush", (0.6, 0.5), (0.9, 0.5))
    assert tab.painted()[45, 75:105].all() and tab.painted().sum() > triangle.sum() + 60
    tab.page.click("#undo")
    tab.wait_for_mask(tmp_path / "saved.zip", lambda mask: bool(np.abs(mask - triangle).mean() < 0.02))

    names = tab.tour()
    parts = {
        "network",
        "save",
        "open",
        "supports",
        "undo",
        "redo",
        "clear",
        "mask",
        "class",
        "strip",
        "remove",
        "empty",
    }
    parts |= {"queries", "stop", "start", "view", "threshold", "order", "formats", "pack", "messages", "canvas"}
    assert parts <= names and {"Add by click", "Brush", "Polygon", "Segment", "Explain", "Failures"} <= names
    tab.page.click("#painter button[data-tool=polygon]")
    tab.page.focus("#painter canvas")
    tab.page.mouse.move(5, 5)
    with tab.page.expect_response(lambda response: "/queue/join" in response.url):
        for key, times in (("Enter", 1), ("ArrowLeft", 10), ("Enter", 1), ("ArrowDown", 10), ("Enter", 2)):
            for _ in range(times):
                tab.page.keyboard.press(key)
    by_keys = tab.painted()
    assert by_keys[45:60, 36:60].mean() > 0.4 and by_keys.sum() < triangle.sum() + 24 * 24


def test_a_click_marks_the_object(tab: Tab, tmp_path: Path) -> None:
    torch.manual_seed(0)
    truth = scene(tmp_path / "s.png", 90, 120) == 1
    rows, columns = np.nonzero(truth)
    x, y = columns.mean() / 120, rows.mean() / 90
    tab.add_support(str(tmp_path / "s.png"))
    tab.page.click("#painter button[data-tool=add]")
    tab.click_at(x, y)
    mask = tab.wait_for_mask(tmp_path / "one.zip", np.any)
    assert ((mask == 1) & truth).sum() / ((mask == 1) | truth).sum() > 0.7
    tab.page.click("#painter button[data-tool=take]")
    tab.click_at(x, y)
    tab.wait_for_mask(tmp_path / "two.zip", lambda mask: not mask[int(y * 90), int(x * 120)])

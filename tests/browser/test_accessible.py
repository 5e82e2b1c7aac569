"""WCAG 2.2 AA: axe, keys alone, contrast of every cell, targets, reflow, motion, forced colours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing import VIEWS, Open

if TYPE_CHECKING:
    from playwright.sync_api import Page

MODES: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "forced colours": {"forced_colors": "active"},
}
CELLS = """() => [...document.querySelectorAll('.token, table.heat td, #compare-heads td')]
  .filter((cell) => cell.checkVisibility() && cell.textContent)
  .map((cell) => [getComputedStyle(cell).color, getComputedStyle(cell).backgroundColor])"""
CONTROLS = "a[href], button, select, input, [role=option]"


def _violations(page: Page) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    results = Axe().run(page, options={"rules": {"target-size": {"enabled": True}}})
    return [
        f"{found['id']}: {node['html'][:120]}"
        for found in results.response["violations"]
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["pair", "beams"])
def test_axe_finds_nothing(mode: str, name: str, open_page: Open, request: pytest.FixtureRequest) -> None:
    page = open_page(request.getfixturevalue(name), **MODES[mode])
    for view in [*VIEWS, "compare"] if name == "pair" else ["beams"]:
        page.click(f"#tab-{view}")
        assert _violations(page) == [], view


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_on_every_colour(pair: Path, open_page: Open, mode: str) -> None:
    page = open_page(pair, "token=19&scale=linear", **MODES[mode])
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    for view in (*VIEWS, "compare"):
        page.click(f"#tab-{view}")
        for ink, cell in page.evaluate(CELLS):
            assert _contrast(ink, ground if cell == "rgba(0, 0, 0, 0)" else cell) >= 4.5, view
    assert page.evaluate(  # and on every colour that there could be
        "Object.keys(RAMPS.light).flatMap((name) => ramp(name).map(({ css, ink }) => [css, ink]))"
        ".every(([css, ink]) => contrast(css.match(/\\d+/g).map(Number), channels(ink)) >= 4.5)"
    )


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ["story", "pair", "beams"])
def test_the_keyboard_alone_reaches_everything(
    name: str, open_page: Open, request: pytest.FixtureRequest
) -> None:
    page = open_page(request.getfixturevalue(name))
    tabs = page.locator('[role="tab"]:visible').count()
    for _ in range(tabs):
        expected = page.evaluate(
            f"""() => [...document.querySelectorAll('{CONTROLS}')].filter((one) => one.checkVisibility() && !one.disabled
                && one.tabIndex >= 0 && !(one.type === 'radio' && !one.checked)).map((one, i) => (one.dataset.n = i))"""
        )
        page.evaluate("document.activeElement.blur(), getSelection().collapse(document.body, 0)")
        reached = set()
        for _ in range(len(expected) + 25):  # also regions that scroll
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.dataset.n ?? null"))
        assert reached - {None} == {str(n) for n in expected}
        page.focus('[role="tab"][aria-selected="true"]')
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    assert page.is_visible("#panel-attention")  # round


def test_the_text_is_one_stop(story: Path, open_page: Open) -> None:
    page = open_page(story)
    assert page.locator('.token[tabindex="0"]').count() == 1
    page.focus('.token[tabindex="0"]')
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "token"


def test_the_focus_is_seen(story: Path, open_page: Open) -> None:
    page = open_page(story)
    for selector in ("#theme", '.token[tabindex="0"]', "#layer", "#pin", "#tab-attention"):
        page.focus(selector)
        page.keyboard.press("Shift")  # makes it focus by keyboard
        width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 2, selector


@pytest.mark.parametrize("width", [320, 1280])
def test_targets_have_24_pixels(pair: Path, open_page: Open, width: int) -> None:
    page = open_page(pair, viewport={"width": width, "height": 800})
    for view in (*VIEWS, "compare"):
        page.click(f"#tab-{view}")
        small = page.evaluate(
            f"""() => [...document.querySelectorAll('{CONTROLS}, table.heat td[data-i]')].filter((one) => one.checkVisibility())
                .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
                .filter(([html, box]) => !html.includes('skip') && (box.width < 24 || box.height < 24)).map(([html]) => html)"""
        )
        assert small == [], view


@pytest.mark.parametrize("name", ["pair", "beams", "hostile"])
def test_320_pixels_are_enough(name: str, open_page: Open, request: pytest.FixtureRequest) -> None:
    page = open_page(request.getfixturevalue(name), viewport={"width": 320, "height": 640})
    for tab in page.locator('[role="tab"]:visible').all():
        tab.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, tab.inner_text()


@pytest.mark.parametrize(("motion", "duration"), [("reduce", "0s"), ("no-preference", "0.12s")])
def test_reduced_motion_is_honoured(story: Path, open_page: Open, motion: str, duration: str) -> None:
    page = open_page(story, "view=cache", reduced_motion=motion)
    assert page.evaluate("getComputedStyle(document.querySelector('.old')).transitionDuration") == duration
    assert page.evaluate("document.getAnimations().length") == 0  # nothing moves by itself


def test_forced_colours_keep_the_difference(story: Path, open_page: Open) -> None:
    page = open_page(story, "token=3&layer=2&head=0", forced_colors="active")
    widths = page.evaluate(
        "[...document.querySelectorAll('.token')].slice(0, 6).map((token) => getComputedStyle(token).borderBottomWidth)"
    )
    assert len(set(widths[:4])) > 1  # an underline takes the colour's place
    assert set(widths[4:]) == {"0px"}

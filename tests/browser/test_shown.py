"""What the page shows, by mouse, by keys, and by its address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import VIEWS, Open, state, until

import minigpt
from minigpt.interp.page import Page as Explored

if TYPE_CHECKING:
    from playwright.sync_api import Page

BUILD = Path(__file__).parents[2] / "build" / "browser"


def readout(page: Page) -> str:
    return page.inner_text("#readout")


def test_hovering_shows_what_a_token_attends_to(story: Path, open_page: Open) -> None:
    page = open_page(story, "token=3")
    before = readout(page), page.inner_text("#attention-table"), page.inner_text('.token[data-i="9"]')
    page.hover('.token[data-i="9"]')
    assert state(page, "token") == 9
    assert readout(page).startswith(f"9 “{before[2]}” attends in layer 4, head 0 most to ")
    assert before[:2] != (readout(page), page.inner_text("#attention-table"))
    colours = page.evaluate(
        "[...document.querySelectorAll('.token')].map((token) => token.style.backgroundColor)"
    )
    assert all(colours[:10])
    assert not any(colours[10:])  # nothing is read from what comes later


def test_keys_move_the_token_the_layer_and_the_head(story: Path, open_page: Open) -> None:
    page = open_page(story, "token=5&layer=2&head=1")
    page.focus('.token[data-i="5"]')
    seen = {readout(page)}
    moves = {
        "ArrowRight": (6, 2, 1), "ArrowLeft": (5, 2, 1), "ArrowUp": (5, 3, 1), "ArrowDown": (5, 2, 1), "]": (5, 2, 2),
        "[": (5, 2, 1), "Home": (0, 2, 1), "End": (40, 2, 1),
    }  # fmt: skip
    for key, expected in moves.items():
        page.keyboard.press(key)
        assert state(page, "token", "layer", "head") == expected, key
        assert page.evaluate("document.activeElement.dataset.i") == str(expected[0])
        seen.add(readout(page))
    assert len(seen) == 6  # the start, which three keys lead back to, and five others


def test_edges_hold(story: Path, open_page: Open) -> None:
    page = open_page(story, "token=0&layer=7&head=0")
    page.focus('.token[data-i="0"]')
    for key in ("ArrowLeft", "ArrowUp", "["):
        page.keyboard.press(key)
    assert state(page, "token", "layer", "head") == (0, 7, 0)


def test_a_pinned_token_stays_while_others_are_read_off(story: Path, open_page: Open) -> None:
    page = open_page(story, "token=12")
    page.focus('.token[data-i="12"]')
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    page.hover('.token[data-i="7"]')
    assert state(page, "token", "cursor", "pinned") == (12, 7, True)
    assert "attends to 7 “·king”" in readout(page)
    page.hover('.token[data-i="20"]')
    assert "it comes later" in readout(page)
    page.keyboard.press("Escape")
    assert state(page, "token", "cursor", "pinned") == (20, 20, False)


def test_what_the_keyboard_changes_is_announced(story: Path, open_page: Open) -> None:
    page = open_page(story)
    page.focus('.token[tabindex="0"]')
    page.keyboard.press("Home")
    until(page, "document.getElementById('live').textContent.startsWith('0 “Once” attends')")
    page.hover('.token[data-i="4"]')
    assert page.inner_text("#live").startswith("0 “Once”")  # hovering is silent


def test_the_address_restores_everything(pair: Path, open_page: Open) -> None:
    page = open_page(pair)
    page.click("#tab-choices")
    page.check('input[name="run"][value="1"]')
    page.fill("#token", "20")
    page.select_option("#layer", "1")
    page.select_option("#head", "3")
    page.click("#pin")
    page.fill('#sliders input[aria-label="Top-k (0: off) as a number"]', "7")
    until(page, "location.hash.includes('topK=7')")
    there = open_page(pair, page.evaluate("location.hash.slice(1)"))
    assert there.evaluate("state") == page.evaluate("state")
    assert state(there, "view", "run", "token", "layer", "head", "pinned", "topK") == (
        "choices",
        1,
        20,
        1,
        3,
        True,
        7,
    )
    for panel in ("#panel-choices", "#strips", "#readout"):
        assert there.inner_text(panel) == page.inner_text(panel)


@pytest.mark.parametrize(
    "nonsense",
    [
        "view=__proto__&token=-5&layer=99&head=x",
        "run=7&temperature=0&topP=3&topK=-1",
        "constructor=1&token=1e99&view=beams",
        "%",
        "&&==",
    ],
)
def test_an_address_that_makes_no_sense_is_put_right(story: Path, open_page: Open, nonsense: str) -> None:
    page = open_page(story, nonsense)
    assert page.is_visible("#panel-attention")
    assert 0 <= state(page, "token") <= 40
    assert 0 <= state(page, "layer") <= 7
    assert 0 < state(page, "temperature") <= 2


def test_a_pasted_address_takes_effect_at_once(story: Path, open_page: Open) -> None:
    page = open_page(story)
    page.evaluate("location.hash = 'view=lens&token=2&layer=1'")
    until(page, "state.view === 'lens'")
    assert state(page, "token", "layer") == (2, 1)
    assert page.is_visible("#panel-lens")


def test_a_pasted_address_is_not_lost_where_the_page_writes_its_own(story: Path, open_page: Open) -> None:
    """The event comes later than the address, and the state may be written in between."""
    page = open_page(story)
    page.evaluate("location.hash = 'view=lens&token=2&layer=1'; writeHash()")
    until(page, "state.view === 'lens'")


def test_views_of_attention_change_the_view_alone(story: Path, open_page: Open) -> None:
    page = open_page(story, "token=12&layer=1&head=0")

    def rows() -> list[str]:
        return page.locator("#attention-table tbody tr").all_inner_texts()

    plain = rows()
    page.check("#hide-first")
    # The weights stay as they are.
    assert [row for row in plain if not row.startswith("Once")][:8] == rows()[:8]
    page.uncheck("#hide-first")
    page.select_option("#weighting", "value")
    assert rows() != plain
    page.select_option("#weighting", "plain")
    assert rows() == plain
    picture = "document.querySelector('#matrix canvas').toDataURL()"
    before = page.evaluate(picture)
    page.select_option("#scale", "linear")
    assert page.evaluate(picture) != before


def test_a_click_in_the_picture_of_all_heads_selects_one(story: Path, open_page: Open) -> None:
    page = open_page(story, "layer=0&head=0")
    box = page.locator("#grid canvas").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9)
    assert state(page, "layer", "head") == (7, 4)


def test_the_lens_shows_every_layer_and_ends_with_the_prediction(story: Path, open_page: Open) -> None:
    page = open_page(story, "view=lens&token=3&layer=7")
    rows = page.locator("#lens-table tbody tr").all_inner_texts()
    assert len(rows) == 9
    assert rows[-1].startswith("embedding")
    (likeliest,) = minigpt.top(*minigpt.load(), "Once upon a time", n=1)
    assert rows[0].startswith(f"layer 7\t{likeliest.text.replace(' ', '·')}\t")
    for quantity in ("rank", "entropy", "kl"):
        before = page.evaluate("document.querySelector('#lens-window td.current').style.backgroundColor")
        page.select_option("#quantity", quantity)
        assert (
            page.evaluate("document.querySelector('#lens-window td.current').style.backgroundColor") != before
        )
    page.click('#lens-window td[data-i="2"][data-row="4"]')
    assert state(page, "token", "layer") == (2, 3)


def test_the_cache_fills_step_by_step(story: Path, open_page: Open) -> None:
    page = open_page(story, "view=cache")
    assert page.locator("#cache-table tbody tr").nth(2).inner_text() == "after\t17\t43.5 kB\t348.2 kB\t1.7%"
    page.focus("#cache-step")
    page.keyboard.press("ArrowRight")
    assert (
        page.locator("#cache-table tbody tr").nth(1).inner_text()
        == "read in this step\t1\t2.56 kB\t20.5 kB\t0.10%"
    )
    page.keyboard.press("End")
    # The last token is never read.
    assert page.locator("#cache-table tbody tr").nth(2).inner_text().startswith("after\t40\t")
    page.click("#cache-play")  # from the beginning
    until(page, "state.cacheStep === 1")


def test_beams_are_drawn_and_listed(beams: Path, open_page: Open) -> None:
    page = open_page(beams, "view=beams")
    assert page.locator("#beam-picture text").count() == 1 + 8 * 4
    assert page.locator("#beam-table tbody tr").count() == 4
    best = page.locator("#beam-table tbody tr").first.inner_text().split("\t")[0]
    shown = page.evaluate("plain(runs[0].pieces.slice(runs[0].prompt_length).join(''))")
    assert best == shown
    page.fill("#beam-step", "2")
    assert all("goes on" in row for row in page.locator("#beam-table tbody tr").all_inner_texts())


def test_two_runs_stand_side_by_side(pair: Path, open_page: Open) -> None:
    page = open_page(pair, "view=compare&token=7")
    assert page.locator(".strip:visible").count() == 2
    row = page.locator("#compare-table tr.current").inner_text().split("\t")
    assert row[:2] + row[3:4] == ["7", "·king", "·queen"]
    assert float(row[4]) - float(row[2]) == pytest.approx(float(row[5].replace("−", "-")), abs=0.011)
    predictions = [row.split("\t") for row in page.locator("#compare-predictions tbody tr").all_inner_texts()]
    assert 5 <= len(predictions) <= 10
    assert all(float(a[:-1]) <= 100 for _, a, b, _ in predictions if a != "–")
    before = page.evaluate("document.querySelector('.token').style.backgroundColor")
    page.select_option("#difference", "attention")
    assert page.evaluate("document.querySelector('.token').style.backgroundColor") != before
    distances = page.locator("#compare-heads tbody td").all_inner_texts()
    assert len(distances) == 40
    assert all(0 <= float(distance) <= 1 for distance in distances)
    page.locator('.strip .token[data-i="23"]:visible').last.hover()  # the second run is longer
    assert "A: ended before" in readout(page)


def test_a_table_is_copied_as_text(story: Path, open_page: Open) -> None:
    page = open_page(story, "token=2", permissions=["clipboard-read", "clipboard-write"])
    page.click("#attention-table button")
    until(page, "document.querySelector('#attention-table button').textContent === 'Copied'")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0] == "Key\tPosition\tWeight"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"format":"minigpt-page-1"',
            '"format":"minigpt-page-2"',
            "its data is not of the format minigpt-page-1",
        ),
        ('"pieces":["Once"', '"pieces":', "The page could not be shown: "),
    ],
)
def test_a_page_that_is_damaged_says_so(
    story: Path, open_page: Open, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = story.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "damaged.html").write_text(text.replace(old, new), encoding="utf-8")
    page = open_page(tmp_path / "damaged.html")
    assert message in page.inner_text("#failure")
    assert not page.is_visible("#main")


def test_a_browser_that_is_too_old_is_told_what_it_lacks(story: Path, open_page: Open) -> None:
    page = open_page(story, script="delete globalThis.DecompressionStream")
    assert "it needs DecompressionStream" in page.inner_text("#failure")


def test_a_character_of_several_tokens_is_named_at_each(hostile: Path, open_page: Open) -> None:
    page = open_page(hostile)
    first, last = page.evaluate("runs[0].characters.find(([first, last, character]) => character === '😀')")[
        :2
    ]
    for token in range(first, last + 1):
        page.hover(f'.token[data-i="{token}"]')
        assert "(a part of 😀)" in readout(page)
    assert page.inner_text(f'.token[data-i="{last}"]').endswith("⟩😀")


def test_the_token_after_a_full_context_was_not_read(shaped_like_gpt2: Path, open_page: Open) -> None:
    page = open_page(shaped_like_gpt2, "token=1024&pinned=1")
    assert "was not read: it lies beyond the context length" in readout(page)
    page.click("#tab-lens")
    assert "was not read" in readout(page)
    assert page.locator("#lens-table tbody tr").first.inner_text().split("\t")[1:3] == ["–", "–"]
    assert "were left out" in page.inner_text("#count")


def test_the_text_scrolls_to_what_the_address_selects(shaped_like_gpt2: Path, open_page: Open) -> None:
    page = open_page(shaped_like_gpt2, "token=900")
    box, token = (page.locator(part).bounding_box() for part in ("#strips", '.token[data-i="900"]'))
    assert box
    assert token
    assert box["y"] <= token["y"] <= box["y"] + box["height"]
    assert page.evaluate("scrollY") == 0  # the page itself stays


def test_the_page_works_in_the_frame_of_a_notebook(
    story: Path, explored: Explored, open_page: Open, tmp_path: Path
) -> None:
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><html data-ready>{explored._repr_html_()}</html>", encoding="utf-8")
    frame = open_page(notebook).frame_locator("iframe")
    frame.locator('.token[data-i="9"]').hover()
    assert frame.locator("#readout").inner_text().startswith("9 “·had” attends")
    frame.locator("#theme").select_option("dark")  # without a place to keep it
    frame.locator("#tab-choices").click()
    assert "given in the prompt" in frame.locator("#choice-sentence").inner_text()


def test_markup_in_a_text_stays_text(hostile: Path, open_page: Open) -> None:
    page = open_page(hostile)
    for view in (*VIEWS, "compare"):
        page.click(f"#tab-{view}")
    assert page.title() != "hacked"
    assert page.locator("img, b, iframe, object").count() == 0
    assert page.locator("script").count() == 2  # the data and the page's own
    assert page.evaluate("({}).polluted === undefined && Object.keys(Object.prototype).length === 0")
    pieces = "".join(page.locator(".strip").first.locator(".token").all_text_contents())
    assert "</script><script>document" in pieces
    assert "onerror" in pieces
    assert "__proto__" in pieces
    assert "{{js}}" in pieces
    assert "\u202e" not in page.content()


def test_the_theme_can_be_chosen_and_pictures_follow(story: Path, open_page: Open) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    page = open_page(story, color_scheme="light")
    picture = "document.querySelector('#matrix canvas').toDataURL()"
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(picture), page.evaluate(ground)
    page.screenshot(path=BUILD / "light.png", full_page=True)
    page.select_option("#theme", "dark")
    dark = page.evaluate(picture), page.evaluate(ground)
    page.screenshot(path=BUILD / "dark.png", full_page=True)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate(ground) == dark[1]  # kept for the next time


def test_print_shows_the_text_and_the_tables_alone(story: Path, open_page: Open) -> None:
    page = open_page(story)
    page.emulate_media(media="print")
    assert not page.is_visible("#tabs")
    assert not page.is_visible("#theme")
    assert page.is_visible("#strips")
    assert page.is_visible("#attention-table table")

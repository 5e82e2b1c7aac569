"""Pages of `minigpt explore` in Chromium: offline, every request but for the file itself refused, nothing on the console.

Where there is no Chromium or no Playwright, each test is skipped under its own name; with CI=true that is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browsing import Open, Saved

import minigpt
from minigpt.interp.page import Page as Explored
from minigpt.interp.page import explore
from minigpt.sampler import Beam, Sample

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PROMPT = "Once upon a time there was a king who had three sons, and the king loved"
HOSTILE = (
    "</script><script>document.title='hacked'</script><!-- <script><img src=x onerror=document.title='hacked'>"
    " \u2028 \u202e abc \u202c __proto__ e" + "\u0301" * 60 + " \x00\x07\x1b é😀 שלום & <b>{{js}}</b>\n\n"
)
PLACES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
CHROMIUM = next(filter(None, map(shutil.which, PLACES)), None)


def _missing() -> list[str]:
    packages = ("playwright", "axe_playwright_python")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return missing if CHROMIUM else [*missing, "chromium"]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if missing := _missing():
        message = f"{item.nodeid} needs {' and '.join(missing)}"
        pytest.fail(message, pytrace=False) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Open]:
    """A function that opens a file, and shows the state in its second argument: `view=lens&token=3`.

    `script` runs before those of the page.
    """
    contexts: list[BrowserContext] = []
    noise: list[str] = []  # whatever the page asked for or said, which must be nothing

    def opened(file: Path, state: str = "", *, script: str = "", **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.set_offline(True)
        context.route(
            "**/*",
            lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort(),
        )
        page = context.new_page()
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: noise.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: request.is_navigation_request() or noise.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(f"{file.as_uri()}#{state}")
        page.wait_for_selector("html[data-ready], #failure:not([hidden])", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("pages")

    def save(name: str, explored: Explored) -> Path:
        explored.save(folder / f"{name}.html")
        return folder / f"{name}.html"

    return save


@pytest.fixture(scope="session")
def bundled() -> tuple[minigpt.GPT2, minigpt.Tokenizer]:
    return minigpt.load()


@pytest.fixture(scope="session")
def explored(bundled: tuple[minigpt.GPT2, minigpt.Tokenizer]) -> Explored:
    """One run, sampled with all that the sliders show."""
    return explore(*bundled, PROMPT, Sample(temperature=0.8, top_k=40, top_p=0.92, seed=3), max_new_tokens=24)


@pytest.fixture(scope="session")
def story(saved: Saved, explored: Explored) -> Path:
    return saved("story", explored)


@pytest.fixture(scope="session")
def pair(saved: Saved, bundled: tuple[minigpt.GPT2, minigpt.Tokenizer]) -> Path:
    """Two runs, one longer than the other."""
    other = PROMPT.replace("king", "queen") + " them"
    return saved(
        "pair", explore(*bundled, PROMPT, Sample(top_p=0.9, seed=3), compare=other, max_new_tokens=6)
    )


@pytest.fixture(scope="session")
def beams(saved: Saved, bundled: tuple[minigpt.GPT2, minigpt.Tokenizer]) -> Path:
    return saved("beams", explore(*bundled, PROMPT, Beam(num_beams=4), max_new_tokens=8))


@pytest.fixture(scope="session")
def hostile(saved: Saved, bundled: tuple[minigpt.GPT2, minigpt.Tokenizer]) -> Path:
    return saved("hostile", explore(*bundled, HOSTILE, compare=HOSTILE[:40], max_new_tokens=4))


@pytest.fixture(scope="session")
def shaped_like_gpt2(saved: Saved, bundled: tuple[minigpt.GPT2, minigpt.Tokenizer]) -> Path:
    """1,024 tokens, 12 layers of 12 heads: as many numbers as gpt2's page has, of a narrow random model."""
    _, tokenizer = bundled
    torch.manual_seed(0)
    config = minigpt.GPT2Config(
        n_layer=12, n_head=12, n_embd=48, n_positions=1024, vocab_size=tokenizer.vocab_size
    )
    prompt = tokenizer.decode(torch.randint(300, 4000, (1300,)).tolist())
    explored = explore(minigpt.GPT2(config).eval(), tokenizer, prompt, overflow="truncate", max_new_tokens=8)
    return saved("gpt2", explored)

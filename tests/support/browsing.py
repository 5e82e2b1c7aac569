"""What the tests of the page share: how a page is opened, and what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.interp.page import Page as Explored

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
Saved = Callable[[str, Explored], Path]

VIEWS = ("attention", "lens", "choices", "surprisal", "cache", "help")  # of every page


def state(page: Page, *names: str) -> Any:
    """What the page shows: one value of its state, or several."""
    values = page.evaluate("(names) => names.map((name) => state[name])", list(names))
    return values[0] if len(names) == 1 else tuple(values)


def until(page: Page, condition: str) -> None:
    """Waits for a JavaScript condition; Playwright's own way needs an `eval` that the page's policy refuses."""
    look = f"({condition}) ? done() : left-- ? requestAnimationFrame(look) : fail(new Error('never so'))"
    page.evaluate(f"new Promise((done, fail) => {{ let left = 600; const look = () => {look}; look(); }})")

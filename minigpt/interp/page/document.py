"""One self-contained HTML file out of data, page.html, page.css and script/*.js, of which nothing but its own script may run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

MARK = re.compile(r"\{\{(csp|title|css|data|js)\}\}")
BEGIN, END = '<script type="application/json" id="data">', "</script>"


def document(data: Mapping[str, Any]) -> str:
    """The page of some data: the same text for the same data.

    Nothing is loaded from anywhere, and a content security policy lets the browser run the page's own script,
    known by its hash, and nothing else: markup in a text stays text.
    """
    here = files("minigpt.interp.page")
    html, css = ((here / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    scripts = {file.name: file for file in (here / "script").iterdir() if file.name.endswith(".js")}
    js = "".join(scripts[name].read_text(encoding="utf-8") for name in sorted(scripts))
    # What would end an element early, or begin a comment in which its end is not seen.
    assert not re.search("</style", css, re.IGNORECASE)
    assert not re.search("</script|<!--", js, re.IGNORECASE)
    parts = {
        "csp": policy(css, js),
        "title": escape(str(data["title"])),
        "css": css,
        "data": in_script(data),
        "js": js,
    }
    return MARK.sub(lambda mark: parts[mark[1]], html)  # in one go: what is put in holds no marks


def policy(css: str, js: str) -> str:
    """The content security policy of a page with this style and this script."""
    return (
        f"default-src 'none'; script-src '{_hash(js)}'; style-src '{_hash(css)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def in_script(data: Mapping[str, Any]) -> str:
    r"""JSON that cannot end the element that it stands in: ASCII, and no character that means something in HTML.

    >>> in_script({"text": "</script><!-- & \u2028 \ud800"})
    '{"text":"\\u003c/script\\u003e\\u003c!-- \\u0026 \\u2028 \\ud800"}'
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda character: f"\\u{ord(character[0]):04x}", text)

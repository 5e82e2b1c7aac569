"""Markup never runs: whatever text the data hold, the page's HTML has the page's own elements and no more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.interp.page.document import BEGIN, END, document, in_script

# What has broken other pages.
NASTY = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "--></script>",
    "<img src=x onerror=alert(1)>",
    "]]>",
    "\u2028\u2029",
    "\ud800",
    "\u202eright to left",
    "__proto__",
    "e" + "\u0301" * 300,
    "\x00\x01\x08\x0b\x1b[31m\x7f\x85",
    "{{data}}{{js}}{{css}}{{csp}}{{title}}",
    "\\1\\g<0>",
    "&lt;b&gt; &amp;",
    '"></title><b>',
]


def data(text: str) -> dict[str, Any]:
    return {"title": text, "provenance": {"command": text}, "runs": [{"pieces": [text]}]}


class Elements(HTMLParser):
    """The tags of a page, in order, and the text of its title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.title = ""
        self._in_title = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        if tag != "meta":
            self.tags.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, text: str) -> None:
        self.title += text if self._in_title else ""


PLAIN = Elements(document(data("plain"))).tags


@pytest.mark.parametrize("text", NASTY)
def test_no_text_adds_an_element_or_gets_lost(text: str) -> None:
    html = document(data(text))
    elements = Elements(html)
    assert elements.tags == PLAIN
    inside = html.partition(BEGIN)[2].partition(END)[0]
    assert json.loads(inside)["runs"][0]["pieces"] == [text]
    assert not set(inside) & set("<>&\u2028\u2029")
    assert inside.isascii()


@given(st.text(max_size=30))
def test_data_are_ascii_and_come_back(text: str) -> None:
    written = in_script(data(text))
    assert written.isascii()
    assert not set(written) & set("<>&")
    assert json.loads(written) == data(text)


def test_the_title_is_text() -> None:
    assert Elements(document(data('"></title><b>&amp;'))).title == '"></title><b>&amp;'


def test_data_without_order_give_the_same_page() -> None:
    backwards = dict(reversed(data("a").items()))
    assert document(backwards) == document(data("a"))


def test_nan_is_none_of_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        in_script({"a": float("nan")})


def test_the_policy_lets_the_page_s_own_script_and_style_run_and_nothing_else() -> None:
    html = document(data("plain"))
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.keys() == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script")


def test_no_outside_address_stands_in_the_file() -> None:
    html = document(data("plain"))
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["'(]?(?:https?:|//)""", html)
    assert not [a for a in re.findall(r"https?://[^\s\"'<>)]+", html) if "www.w3.org" not in a]

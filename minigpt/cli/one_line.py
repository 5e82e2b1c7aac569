"""Text on one line of a terminal: made visible, measured in columns, cut to fit."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    r"""The text on one line, without what would move the cursor or turn the writing round.

    >>> visible("a\nb\tc\x1b[2J")
    'a⏎b c·[2J'
    """
    shown = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", " ")
    return "".join("·" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in shown)


def fitting_end(text: str, columns: int) -> str:
    """The longest end of a text that is no wider than that, after an ellipsis if it is not all.

    >>> fitting_end("abcdef", 4), fitting_end("山田太郎", 6), fitting_end("abc", 3), fitting_end("abc", 0)
    ('…def', '…太郎', 'abc', '')
    """
    if width(text) <= columns:
        return text
    start, room = len(text), columns - 1  # one for the ellipsis
    while start > 0 and width(text[start - 1]) <= room:
        start -= 1
        room -= width(text[start])
    while start < len(text) and width(text[start]) == 0:  # an accent without its letter
        start += 1
    return "…" + text[start:] if columns > 0 else ""


def width(text: str) -> int:
    r"""The columns that a text takes: two for a wide character, none for an accent on the one before.

    >>> width("naive"), width("nai\u0308ve"), width("山")
    (5, 5, 2)
    """
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )

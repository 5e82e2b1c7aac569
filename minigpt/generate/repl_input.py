"""What a person types in an interactive session: lines, pasted paragraphs, and how they join a text."""

from __future__ import annotations

import select
import sys
from contextlib import suppress
from io import TextIOWrapper

from minigpt.cli.terminal import is_terminal, write_err

try:
    import readline  # lets `input` edit lines and remember them
except ImportError:  # Windows
    readline = None  # type: ignore[assignment]

PASTE_PAUSE = 0.02  # seconds; what comes sooner after a line was pasted with it, not typed
OPENING = "([{“‘«"


def prepare_stdin() -> None:
    """Lets stdin take any bytes."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def read() -> str | None:
    r"""What is typed up to a line that does not end in \, or what was pasted; None where the input ends."""
    typed = _read_line("> ")
    if typed is None or typed.startswith("!"):
        return typed
    while typed.endswith("\\") or _more_was_pasted():
        typed = typed.removesuffix("\\") + "\n" + (_read_line(". ") or "")
    return typed


def _read_line(mark: str) -> str | None:
    if sys.stdin is None:
        return None
    if sys.stdin.isatty() and is_terminal(sys.stdout):  # where `input` knows how to edit a line
        with suppress(EOFError):
            return input(mark)
        write_err("\n")
        return None
    write_err(mark)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _more_was_pasted() -> bool:
    """Whether a terminal holds another line already, before a person can have typed it."""
    if not is_terminal(sys.stdin):
        return False
    try:
        return bool(select.select([sys.stdin], [], [], PASTE_PAUSE)[0])
    except (OSError, ValueError):  # Windows selects sockets only
        return False


def joined(text: str, typed: str) -> str:
    r"""What is typed, as it continues a text: with a space before a new word; after a \ without one.

    >>> joined("Once upon", "a time"), joined("Once upon", ", perhaps"), joined("Once up", "\\on")
    (' a time', ', perhaps', 'on')
    >>> joined('He said, "', "No"), joined('"No."', "She left"), joined("The end.\n", "Once")
    ('No', ' She left', 'Once')
    """
    if typed.startswith("\\"):
        return typed[1:]
    if not text or not typed or text[-1].isspace():
        return typed
    return " " + typed if _ends_a_word(text) and _begins_a_word(text, typed) else typed


def _ends_a_word(text: str) -> bool:
    """Whether a new word may follow: not after a hyphen, an opening bracket or an opening quote."""
    opening_quote = text[-1] == '"' and text.count('"') % 2 == 1
    return text[-1] not in OPENING + "-–—/_" and not opening_quote


def _begins_a_word(text: str, typed: str) -> bool:
    """Whether a space belongs before it: a letter, a digit, an opening bracket or an opening quote."""
    opening_quote = typed[0] == '"' and text.count('"') % 2 == 0
    return typed[0].isalnum() or typed[0] in OPENING or opening_quote
